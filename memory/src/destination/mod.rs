//! The destination half: keeps the pages that come before the freeze, and gives them to the restored tasks after it.

pub mod fill;
pub mod keeping;
pub mod shared;
pub mod store;

pub use keeping::{give_files, take_files};
pub use shared::{SharedError, SharedFilled, fill_shared, is_still_shared};
pub use store::{Applied, Content, PageStore, StoreError};

/// Pages shared copy-on-write between tasks are put in place by CRIU, which shares them again, when they are this many at
/// most: 32 MiB cost about 40 ms. More of them come later, and are not shared any more.
pub const EAGER_COW_PAGES: u64 = 8192;
