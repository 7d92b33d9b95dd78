"""Values -> dicts, tables, files, plain text, HTML; each medium escapes in one place."""
