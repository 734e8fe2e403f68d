//! The metadata file as a whole: golden bytes, every damage, crashes at any instant.

mod checkpoints;
mod crash;
mod damage;
mod file;
mod golden;
