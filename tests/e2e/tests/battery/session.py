"""Everything of the handshake and of each command, also what the library's checks would not let through."""
import errno, nbd, sys
socket, size = sys.argv[1], int(sys.argv[2])
h = nbd.NBD()
h.set_opt_mode(True)
h.set_full_info(True)
h.connect_unix(socket)
names = []
assert h.opt_list(lambda name, description: names.append(name) or 0) == 1 and names == ["disk"], names
for wrong in ("nothing", "x" * 4000):
    h.set_export_name(wrong)
    try:
        h.opt_info()
    except nbd.Error:
        pass
    else:
        raise AssertionError("an export that is not there")
h.set_export_name("")
h.opt_info()
assert h.get_size() == size and h.get_canonical_export_name() == "disk"
assert "disk" in h.get_export_description()
h.opt_go()
assert h.aio_is_ready() and h.get_structured_replies_negotiated()

def code(call, *arguments, **more):
    try:
        call(*arguments, **more)
    except nbd.Error as error:
        return error.errnum
    return 0

chunks = []
h.pwrite(b"1" * 8192, 4096)
got = h.pread_structured(12288, 0, lambda data, at, status, error: chunks.append((at, len(data), status)) or 0)
assert got == bytes(4096) + b"1" * 8192 and sum(length for _, length, _ in chunks) == 12288, chunks
chunks.clear()
got = h.pread_structured(65536, 1, lambda data, at, status, error: chunks.append((at, len(data))) or 0, nbd.CMD_FLAG_DF)
assert chunks == [(1, 65536)] and got[4095:12287] == b"1" * 8192
h.cache(65536, 4096)
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
assert h.pread(12288, 0) == bytes(12288)
h.set_strict_mode(0)
assert code(h.pread, 512, size) == errno.EINVAL
assert code(h.pwrite, b"x" * 512, size) == errno.ENOSPC
assert code(h.pwrite, b"", 0) == errno.EINVAL
assert code(h.zero, 512, size - 1) == errno.ENOSPC
assert code(h.trim, 1 << 30, 0) == errno.EINVAL
assert code(h.pread, 512, 0, flags=nbd.CMD_FLAG_NO_HOLE) == errno.EINVAL
assert code(h.pwrite, b"x" * 512, 0, flags=nbd.CMD_FLAG_REQ_ONE) == errno.EINVAL
assert code(h.flush, nbd.CMD_FLAG_FUA) == 0
assert h.pread(12288, 0) == bytes(12288), "what was refused did nothing"
h.shutdown()
g = nbd.NBD()
g.set_opt_mode(True)
g.connect_unix(socket)
g.opt_abort()
