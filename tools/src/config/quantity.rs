//! Sizes and durations as people write them: "10GiB", "512 KiB", 4096; "6s", "500ms", "2min".
//!
//! Invariants: units are explicit, sizes are powers of 1024 (a unit like GB, which means two things, is
//! refused), no value overflows silently.

use std::time::Duration;

/// What sizes are allowed.
pub(crate) struct SizeRange {
    /// Smallest, in bytes.
    pub(crate) min_bytes: u64,
    /// Largest, in bytes.
    pub(crate) max_bytes: u64,
    /// Sizes must be a multiple of this, in bytes.
    pub(crate) multiple_bytes: u64,
}

/// A size within a range, or why not.
pub(crate) fn size_between(text: &str, range: &SizeRange) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if !(range.min_bytes..=range.max_bytes).contains(&bytes) {
        let (min, max) = (crate::text::bytes(range.min_bytes), crate::text::bytes(range.max_bytes));
        return Err(format!("\"{text}\" is out of range; allowed: {min} to {max}"));
    }
    if bytes % range.multiple_bytes != 0 {
        return Err(format!("\"{text}\" is not a multiple of {}", crate::text::bytes(range.multiple_bytes)));
    }
    Ok(bytes)
}

/// A duration within a range, or why not.
pub(crate) fn duration_between(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if !(min..=max).contains(&duration) {
        return Err(format!("\"{text}\" is out of range; allowed: {min:?} to {max:?}"));
    }
    Ok(duration)
}

/// A size: a whole number of bytes, or with KiB, MiB, GiB or TiB.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text).ok_or_else(|| size_help(text))?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" | "K" => 10,
        "MiB" | "M" => 20,
        "GiB" | "G" => 30,
        "TiB" | "T" => 40,
        _ => return Err(size_help(text)),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("\"{text}\" is too large"))
}

fn size_help(text: &str) -> String {
    format!("\"{text}\" is no size; allowed: a number of bytes, or a number with KiB, MiB, GiB or TiB")
}

/// A duration: a whole number with ms, s, min or h.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let help = || {
        format!(
            "\"{text}\" is no duration; allowed: a whole number with ms, s, min or h, for example \"500ms\""
        )
    };
    let (number, unit) = split(text).ok_or_else(help)?;
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "min" | "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(help()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(|| format!("\"{text}\" is too long"))
}

/// Digits, optional space, unit.
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit.trim_start_matches(' ')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("4096", 4096), ("1KiB", 1024), ("3 MiB", 3 << 20), ("2G", 2 << 30), ("1TiB", 1 << 40)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "1.5GiB", "10GB", "10 gib", "99999999999999999999", "99999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in [("500ms", 500), ("6s", 6000), ("2min", 120_000), ("1h", 3_600_000), ("0s", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "6", "s", "1.5s", "6 days", "99999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
