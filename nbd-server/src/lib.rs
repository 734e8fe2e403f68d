//! Placeholder until the first part lands.
#![no_std]
