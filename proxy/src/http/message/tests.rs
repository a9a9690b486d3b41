//! What is read, what is refused, and that what leaves means the same.

mod bodies;
mod heads;
mod meaning;
