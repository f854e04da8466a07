"""The plan's tables."""

APPLICATION_ID = 0x544C504C  # "TLPL"
VERSION = 2

TABLES = (
    """CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID""",
    """CREATE TABLE extent (
  offset INTEGER PRIMARY KEY,
  entry_id INTEGER NOT NULL,
  start INTEGER NOT NULL,
  stop INTEGER NOT NULL
)""",
    """CREATE TABLE bare (
  entry_id INTEGER PRIMARY KEY
)""",
)
