"""Transactions of SQLite on a mounted volume: checks what is there, then writes until told to stop.

    sqlite.py MOUNT LEDGER STOP JOURNAL     JOURNAL: wal or delete

Each transaction inserts three rows with its number and moves a counter. After its commit the number goes to the
ledger, a file outside of the volume. At the start everything in the ledger must be in the database, whole; one
transaction more may be there, which was committed and not noted.
"""
import os
import sqlite3
import sys

PARTS = 3


def payload(number, part):
    return f"{number}-{part}-" * 40


def check(db, noted):
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    (head,) = db.execute("SELECT number FROM head").fetchone()
    assert noted <= head <= noted + 1, f"{noted} transactions were committed, the database has {head}"
    found = db.execute("SELECT number, part, payload FROM entries ORDER BY number, part").fetchall()
    wanted = [(n, part, payload(n, part)) for n in range(1, head + 1) for part in range(PARTS)]
    assert found == wanted, f"{len(found)} rows instead of {len(wanted)}, or others"
    return head


def main(mount, ledger, stop, journal):
    db = sqlite3.connect(f"{mount}/db.sqlite", isolation_level=None)
    assert db.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal,)
    # A commit with a rollback journal is the removal of that journal, which only EXTRA makes durable: with FULL the
    # last transaction may be rolled back after a power loss, as SQLite documents.
    db.execute("PRAGMA synchronous=" + ("FULL" if journal == "wal" else "EXTRA"))
    out = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with open(ledger) as lines:
        noted = sum(1 for _ in lines)
    if noted == 0:
        db.execute("BEGIN")
        db.execute("CREATE TABLE IF NOT EXISTS entries (number, part, payload, PRIMARY KEY (number, part))")
        db.execute("CREATE TABLE IF NOT EXISTS head AS SELECT 0 AS number")
        db.execute("COMMIT")
    number = check(db, noted)
    # What was committed and not noted counts from now on.
    os.write(out, b"1\n" * (number - noted))
    print(f"checked {number} transactions", flush=True)
    while not os.path.exists(stop):
        number += 1
        db.execute("BEGIN")
        rows = [(number, part, payload(number, part)) for part in range(PARTS)]
        db.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
        db.execute("UPDATE head SET number = ?", (number,))
        db.execute("COMMIT")
        os.write(out, b"1\n")
    db.close()


main(*sys.argv[1:])
