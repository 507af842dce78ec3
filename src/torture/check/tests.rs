//! Each check on evidence that was doctored.
