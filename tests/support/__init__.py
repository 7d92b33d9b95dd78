"""What the tests stand on: real servers, and tools that make disks, networks and processes fail."""
