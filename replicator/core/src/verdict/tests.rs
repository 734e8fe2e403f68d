//! The table of the verdict, row by row, and the promises of all pairs.
