"""Four connections with hundreds of requests under way, answered in any order; all of it is checked."""
import nbd, random, sys
uri, random = sys.argv[1], random.Random(5)
handles = [nbd.NBD() for _ in range(4)]
for h in handles:
    h.connect_uri(uri)
    assert h.can_multi_conn()
size, page = handles[0].get_size(), 4096
pages = list(range(size // page))
random.shuffle(pages)
expected, running, done, failed = {}, 0, 0, []

def finish(handle, then):
    def callback(error):
        global running, done
        running, done = running - 1, done + 1
        if error.value: failed.append(error.value)
        then()
        return 1
    return callback

def turn(limit):
    while running > limit:
        for h in handles:
            while h.aio_in_flight() and h.poll(0): pass
        if running > limit:
            busiest = max(handles, key=lambda h: h.aio_in_flight())
            busiest.poll(-1)

def write(n, page_number):
    global running
    running += 1
    bytes = random.randbytes(page)
    expected[page_number] = bytes
    h, flags = handles[n % 4], nbd.CMD_FLAG_FUA if n % 50 == 0 else 0
    buffer = nbd.Buffer.from_bytearray(bytearray(bytes))
    h.aio_pwrite(buffer, page_number * page, completion=finish(h, lambda: buffer), flags=flags)

def read(n, page_number):
    global running
    running += 1
    h, buffer = handles[n % 4], nbd.Buffer(page)
    def check():
        if buffer.to_bytearray() != expected[page_number]: failed.append(page_number)
    h.aio_pread(buffer, page_number * page, completion=finish(h, check))

for n, page_number in enumerate(pages[:3000]):
    write(n, page_number)
    turn(800)
turn(0)
handles[3].flush()
for n, page_number in enumerate(pages[:3000]):
    read(n + 1, page_number)
    turn(800)
turn(0)
assert (done, failed) == (6000, []), (done, failed[:9])
for h in handles:
    h.shutdown()
