#![deny(unsafe_code)]
#![allow(dead_code, unused_imports, missing_docs)]
mod config;
mod error;
mod report;
mod ring;
mod slab;
mod slots;
mod system;
