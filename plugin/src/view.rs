//! A request as routes and policies look at it.

use waypost_policy::RequestView;

use crate::host::Request;

/// A request whose headers are in. Each look is a call of the host: to be used through
/// [`Remembering`](waypost_policy::Remembering).
#[derive(Debug)]
pub struct View<'a, R>(pub &'a mut R);

impl<R: Request> RequestView for View<'_, R> {
    fn host(&mut self) -> Option<Vec<u8>> {
        self.0.header(":authority")
    }

    fn path(&mut self) -> Option<Vec<u8>> {
        self.0.header(":path")
    }

    fn method(&mut self) -> Option<Vec<u8>> {
        self.0.header(":method")
    }

    fn header(&mut self, name: &str) -> Option<Vec<u8>> {
        self.0.header(name)
    }

    fn source(&mut self) -> Option<Vec<u8>> {
        self.0.source()
    }
}
