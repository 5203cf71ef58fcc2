//! Preloaded into a process, it steps that process's wall clock by the seconds that a file says, and leaves the monotonic
//! clock alone. Compiled when it is needed; see `waypost_tests::chaos::clock`.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_long, c_void};

#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn getenv(name: *const c_char) -> *const c_char;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn read(file: c_int, to: *mut c_void, count: usize) -> isize;
    fn close(file: c_int) -> c_int;
}

#[cfg(target_arch = "x86_64")]
const CLOCK_GETTIME: c_long = 228;
#[cfg(target_arch = "aarch64")]
const CLOCK_GETTIME: c_long = 113;
const CLOCK_REALTIME: c_int = 0;

/// What everybody on glibc asks for the time.
///
/// # Safety
/// As the system's: `time` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
    // SAFETY: the kernel checks the pointer, which is the caller's.
    let result = unsafe { syscall(CLOCK_GETTIME, clock, time) };
    if result == 0 && clock == CLOCK_REALTIME {
        // SAFETY: the kernel has just written there.
        unsafe { (*time).seconds += step() };
    }
    result as c_int
}

fn step() -> i64 {
    let mut text = [0_u8; 32];
    // SAFETY: the strings end in a zero, the buffer is as long as said, and the file is closed once.
    let count = unsafe {
        let path = getenv(c"WAYPOST_WALL_CLOCK".as_ptr());
        if path.is_null() {
            return 0;
        }
        let file = open(path, 0);
        if file < 0 {
            return 0;
        }
        let count = read(file, text.as_mut_ptr().cast(), text.len());
        close(file);
        count
    };
    let text = usize::try_from(count).ok().and_then(|count| std::str::from_utf8(text.get(..count)?).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
