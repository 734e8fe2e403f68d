pub(crate) mod hello;
