//! Files of a node as a backup takes them and gives them back: what makes a copy older than its peer believes.

use crate::{Node, RESOURCE};
use std::path::PathBuf;

/// Data and metadata of a node that was stopped.
#[derive(Debug)]
pub struct Backup {
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Backup {
    /// Reads them.
    pub fn of(node: &Node) -> Backup {
        let meta = node.disk().with_file_name(format!("{RESOURCE}.0.meta"));
        let read = |path: PathBuf| (path.clone(), std::fs::read(path).expect("read a file of a node"));
        Backup { files: [node.disk().to_path_buf(), meta].into_iter().map(read).collect() }
    }

    /// Into the same files: a restored volume is the same device.
    pub fn restore(&self) {
        for (path, bytes) in &self.files {
            std::fs::write(path, bytes).expect("write a file of a node");
        }
    }
}
