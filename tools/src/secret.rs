//! The shared secret: a file that only its owner can read, from which the key of the mutual authentication
//! is derived.
//!
//! Invariants: a secret that others can read, or that is too short to resist guessing, is refused, never
//! warned about.

use crate::failure::Failure;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const SECRET_BYTES_MIN: usize = 16;
const SECRET_BYTES_MAX: u64 = 4096;
const KEY_CONTEXT: &str = "lockstep 2026 replication link shared secret";

/// The 32-byte key of a secret file.
pub(crate) fn load(file: &Path) -> Result<[u8; 32], Failure> {
    let named = |error: std::io::Error| {
        let next = match error.kind() {
            std::io::ErrorKind::NotFound => "; copy it from the other node: both have the same one",
            _ => "",
        };
        Failure::config(format!("secret-file {}: {error}{next}", file.display()))
    };
    let mut handle = File::open(file).map_err(named)?;
    check_private(&handle, file)
        .map_err(|why| Failure::config(format!("secret-file {}: {why}", file.display())))?;
    let mut text = Vec::new();
    handle.by_ref().take(SECRET_BYTES_MAX + 1).read_to_end(&mut text).map_err(named)?;
    // Editors and copies change white space at the end; the key must not depend on it.
    let secret = text.trim_ascii();
    if secret.len() < SECRET_BYTES_MIN || text.len() as u64 > SECRET_BYTES_MAX {
        return Err(Failure::config(format!(
            "secret-file {}: {} bytes; {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} are needed, the same on both nodes",
            file.display(),
            secret.len()
        )));
    }
    Ok(blake3::derive_key(KEY_CONTEXT, secret))
}

/// Opens a file that only its owner may read; an error in words else.
pub(crate) fn open_private(file: &Path) -> Result<File, String> {
    let handle = File::open(file).map_err(|error| error.to_string())?;
    check_private(&handle, file).map(|()| handle)
}

/// Looks at the mode of what was opened, not of whatever has that name by now.
fn check_private(handle: &File, file: &Path) -> Result<(), String> {
    let mode = handle.metadata().map_err(|error| error.to_string())?.mode() & 0o7777;
    match mode & 0o077 {
        0 => Ok(()),
        _ => Err(format!("mode {mode:04o} lets others read it; type: chmod 0600 {}", file.display())),
    }
}

/// A new secret: 256 random bits as text.
pub(crate) fn generate() -> Result<String, Failure> {
    let hex: String = random::<32>()?.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(hex + "\n")
}

/// Random bytes of the kernel.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Failure::generic(format!("/dev/urandom: {error}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(dir: &Path, content: &str, mode: u32) -> std::path::PathBuf {
        let path = dir.join(format!("secret-{mode:o}-{}", content.len()));
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn only_private_and_long_ones() {
        let dir = tempfile::tempdir().unwrap();
        let long = "0123456789abcdef";
        assert!(load(&file(dir.path(), long, 0o600)).is_ok());
        assert!(load(&file(dir.path(), &format!("{long}x"), 0o400)).is_ok());
        for mode in [0o640, 0o604, 0o644, 0o660] {
            let failure = load(&file(dir.path(), long, mode)).unwrap_err();
            assert_eq!(failure.code, 10);
            assert!(failure.message.contains("chmod 0600"), "{}", failure.message);
        }
        let refused = |path: &Path, word: &str| {
            let failure = load(path).unwrap_err();
            assert_eq!(failure.code, 10);
            let file = path.display().to_string();
            assert!(failure.message.contains(word) && failure.message.contains(&file), "{failure}");
        };
        for content in ["", "\n", "short", "               x", &"x".repeat(5000)] {
            refused(&file(dir.path(), content, 0o600), "16 to 4096 are needed");
        }
        refused(&dir.path().join("absent"), "copy it from the other node");
        refused(&dir.path().join("absent/secret"), "copy it from the other node");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        refused(dir.path(), "directory");
    }

    #[test]
    fn white_space_at_the_end_is_no_part() {
        let dir = tempfile::tempdir().unwrap();
        let a = load(&file(dir.path(), "0123456789abcdef", 0o600)).unwrap();
        let b = load(&file(dir.path(), "0123456789abcdef\n", 0o600)).unwrap();
        let c = load(&file(dir.path(), "0123456789abcdeF", 0o600)).unwrap();
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_ne!(generate().unwrap(), generate().unwrap());
    }
}
