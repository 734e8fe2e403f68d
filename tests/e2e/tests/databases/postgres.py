"""Transactions of PostgreSQL on a mounted volume: checks what is there, then writes until told to stop.

    postgres.py MOUNT LEDGER STOP RUN     RUN: directory of the server's socket

Runs as the user postgres. Each writer has a session; each transaction inserts three rows with its number and moves
the writer's counter. After its commit writer and number go to the ledger, a file outside of the volume. At the start,
after the server's recovery, everything in the ledger must be in the database, whole; one transaction more of each
writer may be there, which was committed and not noted.
"""
import glob
import os
import subprocess
import sys
import threading
import time

WRITERS = 3
PARTS = 3
# Small, so that pages are written and read all the time and not only at the end.
SETTINGS = {
    "shared_buffers": "1MB",
    "checkpoint_timeout": "30s",
    "max_wal_size": "8MB",
    "min_wal_size": "2MB",
    "listen_addresses": "",
    "logging_collector": "off",
    "max_connections": "10",
    "autovacuum_naptime": "1s",
    # Nothing outside of the volume, where it would stay behind.
    "dynamic_shared_memory_type": "mmap",
}
READY_S = 60
CONTENT = "repeat(md5({writer} || '-' || {number} || '-' || part), 20)"


def newest(pattern):
    found = sorted(glob.glob(pattern), key=lambda path: [int(part) for part in path.split("/") if part.isdigit()])
    assert found, f"{pattern} is missing: apt-get install postgresql"
    return found[-1]


BIN = newest("/usr/lib/postgresql/*/bin")


def query(run, text):
    command = [f"{BIN}/psql", "-h", run, "-d", "postgres", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def start(data, run):
    if not os.path.exists(f"{data}/PG_VERSION"):
        initdb = [f"{BIN}/initdb", "-D", data, "-A", "trust", "--data-checksums", "--wal-segsize=1"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL)
    # The file of a server that was killed names a process of another machine.
    if os.path.exists(f"{data}/postmaster.pid"):
        os.remove(f"{data}/postmaster.pid")
    options = [word for key, value in SETTINGS.items() for word in ("-c", f"{key}={value}")]
    server = subprocess.Popen([f"{BIN}/postgres", "-D", data, "-k", run, *options])
    deadline = time.monotonic() + READY_S
    while subprocess.run([f"{BIN}/pg_isready", "-q", "-h", run], check=False).returncode != 0:
        assert server.poll() is None, "the server ended"
        assert time.monotonic() < deadline, f"the server is not ready after {READY_S} s"
        time.sleep(0.05)
    return server


def prepare(run):
    # One call is one transaction.
    query(
        run,
        "CREATE EXTENSION amcheck;"
        "CREATE TABLE heads (writer int PRIMARY KEY, number int NOT NULL);"
        f"INSERT INTO heads SELECT writer, 0 FROM generate_series(1, {WRITERS}) AS writer;"
        "CREATE TABLE entries (writer int, number int, part int, payload text, PRIMARY KEY (writer, number, part))",
    )


def check(run, noted):
    heads = {}
    for line in query(run, "SELECT writer, number FROM heads").splitlines():
        writer, head = map(int, line.split("|"))
        heads[writer] = head
        done = noted.get(writer, 0)
        assert done <= head <= done + 1, f"writer {writer}: {done} were committed, the database has {head}"
    assert sorted(heads) == list(range(1, WRITERS + 1)), heads
    whole = f"SELECT writer, count(*), max(number) FROM entries GROUP BY writer HAVING count(*) <> {PARTS} * max(number)"
    assert query(run, whole) == "", "a transaction is torn"
    wrong = "SELECT count(*) FROM entries WHERE payload <> " + CONTENT.format(writer="writer", number="number")
    assert query(run, wrong) == "0", "a row has another content"
    rows = query(run, "SELECT count(*) FROM entries")
    assert int(rows) == PARTS * sum(heads.values()), f"{rows} rows for {heads}"
    query(run, "SELECT bt_index_check('entries_pkey', true), bt_index_check('heads_pkey', true)")
    return heads


def write(run, writer, number, out, stop):
    command = [f"{BIN}/psql", "-h", run, "-d", "postgres", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
    session = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    content = CONTENT.format(writer=writer, number="{number}")
    while not os.path.exists(stop):
        number += 1
        session.stdin.write(
            "BEGIN;"
            f"INSERT INTO entries SELECT {writer}, {number}, part, {content.format(number=number)}"
            f" FROM generate_series(1, {PARTS}) AS part;"
            f"UPDATE heads SET number = {number} WHERE writer = {writer};"
            "COMMIT;\n\\echo done\n"
        )
        session.stdin.flush()
        answer = session.stdout.readline()
        if answer != "done\n":
            print(f"writer {writer}: {answer!r}", flush=True)
            os._exit(1)
        os.write(out, f"{writer} {number}\n".encode())
    session.stdin.close()
    session.wait()


def main(mount, ledger, stop, run):
    out = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    noted = {}
    with open(ledger) as lines:
        for line in lines:
            writer, number = map(int, line.split())
            noted[writer] = max(number, noted.get(writer, 0))
    server = start(f"{mount}/pg", run)
    if query(run, "SELECT to_regclass('heads')") == "":
        assert not noted, "the tables are gone"
        prepare(run)
    heads = check(run, noted)
    print(f"checked {heads}", flush=True)
    writers = [threading.Thread(target=write, args=(run, w, heads[w], out, stop)) for w in heads]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    server.terminate()  # SIGTERM waits for the sessions, which have ended
    assert server.wait() == 0


main(*sys.argv[1:])
