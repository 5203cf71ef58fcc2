//! Memory that the host hands over.

use proxy_wasm::types::Status;

/// What the host returns: it calls our `malloc`, copies, and leaves the block to us.
pub struct HostBytes {
    pub data: *mut u8,
    pub size: usize,
}

impl Default for HostBytes {
    fn default() -> Self {
        Self { data: std::ptr::null_mut(), size: 0 }
    }
}

impl HostBytes {
    /// The bytes, if the call that they came by ended with this status well.
    pub fn take(self, status: u32) -> Option<Vec<u8>> {
        if status != Status::Ok as u32 {
            None
        } else if self.data.is_null() {
            Some(Vec::new())
        } else {
            // SAFETY: `malloc`, the SDK's, hands out boxed slices of exactly the size asked for.
            Some(unsafe { Vec::from_raw_parts(self.data, self.size, self.size) })
        }
    }
}
