//! A reader over peer bytes that cannot run past its end: the only way this room takes bytes apart.

/// Borrows from what it was given; a failed read says so and nothing more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

/// There were fewer bytes than a length promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Short;

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], Short> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Short)?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Short> {
        let (first, rest) = self.0.split_first().ok_or(Short)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Short> {
        let (head, rest) = self.0.split_first_chunk::<2>().ok_or(Short)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*head))
    }

    pub(super) fn u24(&mut self) -> Result<usize, Short> {
        let (&[a, b, c], rest) = self.0.split_first_chunk::<3>().ok_or(Short)?;
        self.0 = rest;
        Ok(usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c))
    }

    /// A vector with a one-byte length in front (RFC 8446 §3.4).
    pub(super) fn vec8(&mut self) -> Result<&'a [u8], Short> {
        let n = self.u8()?;
        self.take(n.into())
    }

    /// A vector with a two-byte length in front (RFC 8446 §3.4).
    pub(super) fn vec16(&mut self) -> Result<&'a [u8], Short> {
        let n = self.u16()?;
        self.take(n.into())
    }

    /// A list of two-byte numbers behind its own length; `None` where the lengths do not add up.
    pub(super) fn numbers(list: &'a [u8]) -> Option<Vec<u16>> {
        let mut list = Self(list);
        let mut out = Vec::with_capacity(list.0.len() / 2);
        while !list.is_empty() {
            out.push(list.u16().ok()?);
        }
        Some(out)
    }
}
