use super::*;
pub(super) fn encode_log(_log: &GenerationLog, _out: &mut Vec<u8>) {}
pub(super) fn decode_log(_bytes: &[u8]) -> Result<GenerationLog, SuperblockError> {
    Err(SuperblockError::Length)
}
pub(super) fn encode_superblock(_s: &Superblock, _out: &mut Vec<u8>) {}
pub(super) fn decode_superblock(_bytes: &[u8]) -> Result<Superblock, SuperblockError> {
    Err(SuperblockError::Length)
}
