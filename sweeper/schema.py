"""The ledger's tables, and how those of an earlier version become them."""

from __future__ import annotations

SCHEMA_VERSION = 4
STAGES = """
CREATE TABLE stages (id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL REFERENCES attempts(id),
                     stage TEXT NOT NULL, host TEXT NOT NULL, gpus TEXT NOT NULL,
                     launched REAL NOT NULL, ended REAL, exit_code INTEGER, message TEXT,
                     events_from INTEGER NOT NULL)
"""
NOTES = "CREATE TABLE notes (t REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL)"
# What a search has asked for and decided (sweeper/book.py).
ENTRIES = """
CREATE TABLE entries (rung TEXT NOT NULL, number INTEGER NOT NULL,
                      trial INTEGER NOT NULL REFERENCES trials(number), params TEXT NOT NULL,
                      state TEXT NOT NULL, reason TEXT, seeds TEXT NOT NULL,
                      PRIMARY KEY (rung, number))
"""
REPORTS = """
CREATE TABLE reports (rung TEXT NOT NULL, number INTEGER NOT NULL, place INTEGER NOT NULL,
                      value REAL NOT NULL, PRIMARY KEY (rung, number, place))
"""
STAGES_INDEX = "CREATE INDEX stages_of_attempt ON stages (attempt)"
# The stages of version 1, where every attempt was launched whole.
STAGES_OF_VERSION_1 = """
SELECT id, id AS attempt, 'all' AS stage, host, gpus, launched, ended, exit_code, message,
       0 AS events_from FROM attempts
"""
SCHEMA = f"""
CREATE TABLE sweep (uid TEXT NOT NULL, name TEXT NOT NULL, created REAL NOT NULL,
                    spec TEXT NOT NULL);
CREATE TABLE trials (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
                     config_hash TEXT NOT NULL UNIQUE, env TEXT NOT NULL);
CREATE TABLE runs (id INTEGER PRIMARY KEY, trial INTEGER NOT NULL REFERENCES trials(number),
                   seed INTEGER NOT NULL, state TEXT NOT NULL, UNIQUE (trial, seed));
CREATE TABLE attempts (id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs(id),
                       number INTEGER NOT NULL, state TEXT NOT NULL, path TEXT NOT NULL,
                       host TEXT NOT NULL, gpus TEXT NOT NULL, code TEXT,
                       launched REAL NOT NULL, ended REAL,
                       exit_code INTEGER, message TEXT, traceback TEXT, result TEXT,
                       UNIQUE (run, number));
CREATE UNIQUE INDEX one_result ON attempts (run) WHERE state = 'finished';
{STAGES};
{STAGES_INDEX};
{NOTES};
{ENTRIES};
{REPORTS};
"""
# Version -> what makes the next one of it.
MIGRATIONS = {
    1: (STAGES, f"INSERT INTO stages {STAGES_OF_VERSION_1}"),
    2: (STAGES_INDEX, NOTES),
    3: (ENTRIES, REPORTS),
}
NO_NOTES = "CREATE TEMP VIEW notes AS SELECT 0.0 AS t, '' AS kind, '' AS text WHERE 0"
NO_SEARCH = (
    "CREATE TEMP VIEW entries AS SELECT '' AS rung, 0 AS number, 0 AS trial, '{}' AS params,"
    " '' AS state, NULL AS reason, '[]' AS seeds WHERE 0",
    "CREATE TEMP VIEW reports AS SELECT '' AS rung, 0 AS number, 0 AS place, 0.0 AS value WHERE 0",
)
# Version -> what an older ledger, opened for reading, is given so that it reads as one of today.
VIEWS = {
    1: (f"CREATE TEMP VIEW stages AS {STAGES_OF_VERSION_1}", NO_NOTES, *NO_SEARCH),
    2: (NO_NOTES, *NO_SEARCH),
    3: NO_SEARCH,
}
