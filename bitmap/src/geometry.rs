//! Sizes and ranges of one volume: bytes, blocks (one dirty bit each) and regions (one activity bit each).
//!
//! Invariants: a `Geometry` that exists is valid; every index it returns is inside the volume. Conversions
//! between bytes, blocks and regions happen here only: outward where bits are set, inward where bits are
//! cleared.

use core::ops::Range;

const _: () = assert!(usize::BITS >= 64, "block indexes are used as memory indexes");

/// Largest volume: 2^56 bytes.
const SIZE_BYTES_MAX: u64 = 1 << 56;
/// Smallest unit a volume size is made of.
const SECTOR_BYTES: u64 = 512;
const BLOCK_SHIFT_MIN: u8 = 12;
const BLOCK_SHIFT_MAX: u8 = 20;
const REGION_SHIFT_MAX: u8 = 36;

/// Region size used unless told otherwise: 4 MiB.
pub const DEFAULT_REGION_SHIFT: u8 = 22;

/// A node of the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u8);

/// A block, counted from the start of the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

/// A region, counted from the start of the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionIndex(pub u32);

macro_rules! half_open_range {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            /// First unit inside.
            pub start: u64,
            /// First unit after.
            pub end: u64,
        }

        impl $name {
            /// `len` units from `start` on. The end saturates; the volume's bounds are checked by its user.
            pub const fn new(start: u64, len: u64) -> Self {
                Self { start, end: start.saturating_add(len) }
            }

            /// Number of units inside; 0 for an inverted range.
            pub const fn len(self) -> u64 {
                self.end.saturating_sub(self.start)
            }

            /// True if nothing is inside.
            pub const fn is_empty(self) -> bool {
                self.end <= self.start
            }

            /// True if at least one unit is in both.
            pub fn overlaps(self, other: Self) -> bool {
                !self.intersect(other).is_empty()
            }

            /// True if every unit of `other` is inside. An empty range is inside everything.
            pub const fn contains(self, other: Self) -> bool {
                other.is_empty() || (self.start <= other.start && other.end <= self.end)
            }

            /// The units in both; an empty range if there are none.
            pub fn intersect(self, other: Self) -> Self {
                let start = self.start.max(other.start);
                Self { start, end: self.end.min(other.end).max(start) }
            }
        }
    };
}

half_open_range!(
    /// Half-open range of bytes of the volume.
    ByteRange
);
half_open_range!(
    /// Half-open range of blocks of the volume.
    BlockRange
);

/// Why a geometry was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The size is zero, more than 2^56 bytes, or not a multiple of 512.
    #[error("volume size {0} bytes is zero, above 2^56, or not a multiple of 512")]
    Size(u64),
    /// The block size is outside 4 KiB to 1 MiB.
    #[error("block size 2^{0} is outside 2^12 to 2^20")]
    BlockShift(u8),
    /// The region is smaller than a block, larger than 2^36 bytes, or there would be more than 2^32-1
    /// regions.
    #[error("region size 2^{0} is below the block size, above 2^36, or makes too many regions")]
    RegionShift(u8),
}

/// Size of a volume and of its blocks and regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    size_bytes: u64,
    block_shift: u8,
    region_shift: u8,
}

impl Geometry {
    /// Checks and builds. Shifts are powers of two in bytes.
    pub const fn new(size_bytes: u64, block_shift: u8, region_shift: u8) -> Result<Self, GeometryError> {
        if size_bytes == 0 || size_bytes > SIZE_BYTES_MAX || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(GeometryError::Size(size_bytes));
        }
        if block_shift < BLOCK_SHIFT_MIN || block_shift > BLOCK_SHIFT_MAX {
            return Err(GeometryError::BlockShift(block_shift));
        }
        if region_shift < block_shift
            || region_shift > REGION_SHIFT_MAX
            || size_bytes.div_ceil(1 << region_shift) > u32::MAX as u64
        {
            return Err(GeometryError::RegionShift(region_shift));
        }
        Ok(Self { size_bytes, block_shift, region_shift })
    }

    /// Size of the volume.
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Size of a block as a power of two.
    pub const fn block_shift(&self) -> u8 {
        self.block_shift
    }

    /// Size of a region as a power of two.
    pub const fn region_shift(&self) -> u8 {
        self.region_shift
    }

    /// Number of blocks; the last may be partial.
    pub const fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(self.block_bytes())
    }

    /// Number of regions; the last may be partial.
    pub const fn regions(&self) -> u32 {
        // `new` proved that this fits.
        self.size_bytes.div_ceil(self.region_bytes()) as u32
    }

    /// Size of a block.
    pub const fn block_bytes(&self) -> u64 {
        1 << self.block_shift
    }

    /// Size of a region.
    pub const fn region_bytes(&self) -> u64 {
        1 << self.region_shift
    }

    /// The whole volume.
    pub const fn all_blocks(&self) -> BlockRange {
        BlockRange { start: 0, end: self.blocks() }
    }

    /// Blocks with at least one byte in `range`: outward, for setting.
    pub fn blocks_touched(&self, range: ByteRange) -> BlockRange {
        let range = self.clip(range);
        let start = range.start >> self.block_shift;
        if range.is_empty() {
            return BlockRange { start, end: start };
        }
        BlockRange { start, end: range.end.div_ceil(self.block_bytes()) }
    }

    /// Blocks of which every byte is in `range`: inward, for clearing. The partial last block of the volume
    /// counts when the range reaches the end of the volume.
    pub fn blocks_covered(&self, range: ByteRange) -> BlockRange {
        let range = self.clip(range);
        let start = range.start.div_ceil(self.block_bytes());
        let end = if range.end == self.size_bytes { self.blocks() } else { range.end >> self.block_shift };
        BlockRange { start, end: end.max(start) }
    }

    /// The bytes of these blocks, clipped to the volume.
    pub fn bytes_of(&self, blocks: BlockRange) -> ByteRange {
        let blocks = blocks.intersect(self.all_blocks());
        self.clip(ByteRange { start: blocks.start << self.block_shift, end: blocks.end << self.block_shift })
    }

    /// Region of a byte of the volume.
    ///
    /// Panics if the byte is outside the volume.
    pub fn region_of_byte(&self, byte: u64) -> RegionIndex {
        assert!(byte < self.size_bytes, "byte {byte} is outside the volume");
        RegionIndex((byte >> self.region_shift) as u32)
    }

    /// Regions with at least one byte in `range`.
    pub fn regions_touched(&self, range: ByteRange) -> Range<u32> {
        let range = self.clip(range);
        let start = (range.start >> self.region_shift) as u32;
        if range.is_empty() {
            return start..start;
        }
        start..range.end.div_ceil(self.region_bytes()) as u32
    }

    /// Blocks of a region; fewer in the last one.
    ///
    /// Panics if the region is outside the volume.
    pub fn blocks_of_region(&self, region: RegionIndex) -> BlockRange {
        assert!(region.0 < self.regions(), "region {} is outside the volume", region.0);
        let shift = self.region_shift - self.block_shift;
        BlockRange::new(u64::from(region.0) << shift, 1 << shift).intersect(self.all_blocks())
    }

    fn clip(&self, range: ByteRange) -> ByteRange {
        let start = range.start.min(self.size_bytes);
        ByteRange { start, end: range.end.min(self.size_bytes).max(start) }
    }
}

#[cfg(test)]
mod tests;
