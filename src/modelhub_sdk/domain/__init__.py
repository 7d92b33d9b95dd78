"""Values and rules. No I/O, no clock, no environment: everything here can be tested by calling it."""
