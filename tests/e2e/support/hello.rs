//! Client hellos of our own making, true or false to the letter.

/// A hello under construction.
#[derive(Clone)]
pub struct Hello {
    extensions: Vec<(u16, Vec<u8>)>,
}

impl Hello {
    /// A TLS 1.3 hello that a real server answers: X25519 share, P-384 known.
    pub fn named(name: &str) -> Self {
        let share = [&[0, 36, 0, 29, 0, 32][..], &[9; 32]].concat();
        Self { extensions: Vec::new() }
            .with(0, &server_names(&[(0, name.as_bytes())]))
            .with(10, &[0, 4, 0, 29, 0, 24])
            .with(13, &[0, 8, 4, 3, 8, 4, 4, 1, 8, 5])
            .with(43, &[2, 3, 4])
            .with(51, &share)
    }

    pub fn nameless() -> Self {
        let mut hello = Self::named("x");
        hello.extensions.remove(0);
        hello
    }

    pub fn with(mut self, kind: u16, data: &[u8]) -> Self {
        self.extensions.push((kind, data.to_vec()));
        self
    }

    /// In front of the others.
    pub fn first(mut self, kind: u16, data: &[u8]) -> Self {
        self.extensions.insert(0, (kind, data.to_vec()));
        self
    }

    pub fn alpn(self, protocols: &[&str]) -> Self {
        let list: Vec<u8> = protocols.iter().flat_map(|p| [&[p.len() as u8], p.as_bytes()].concat()).collect();
        let data = [&(list.len() as u16).to_be_bytes()[..], &list].concat();
        self.with(16, &data)
    }

    pub fn message(&self) -> Vec<u8> {
        let mut block = Vec::new();
        for (kind, data) in &self.extensions {
            block.extend_from_slice(&kind.to_be_bytes());
            block.extend_from_slice(&(data.len() as u16).to_be_bytes());
            block.extend_from_slice(data);
        }
        let mut body = [&[3, 3][..], &[7; 32], &[32], &[5; 32], &[0, 2, 0x13, 1, 1, 0]].concat();
        body.extend_from_slice(&(block.len() as u16).to_be_bytes());
        body.extend_from_slice(&block);
        [&[1], &(body.len() as u32).to_be_bytes()[1..], &body].concat()
    }

    /// In one record, or as many as its length needs.
    pub fn record(&self) -> Vec<u8> {
        self.records(1 << 14)
    }

    /// In records of this many bytes each.
    pub fn records(&self, size: usize) -> Vec<u8> {
        self.message()
            .chunks(size)
            .flat_map(|part| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat())
            .collect()
    }
}

/// A server_name extension's data.
pub fn server_names(names: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> = names
        .iter()
        .flat_map(|(kind, name)| [&[*kind], &(name.len() as u16).to_be_bytes()[..], name].concat())
        .collect();
    [&(list.len() as u16).to_be_bytes()[..], &list].concat()
}
