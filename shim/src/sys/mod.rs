//! The unsafe corner: system calls, the loaded library's state, and the functions that stand before libc's.
#![allow(unsafe_code)]

pub mod call;
pub mod hooks;
#[cfg(godwit_shim)]
mod memory;
pub mod state;

/// A panic has nowhere to go; there is none in the code that runs.
#[cfg(godwit_shim)]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    call::abort()
}
