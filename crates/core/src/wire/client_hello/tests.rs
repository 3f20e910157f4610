use proptest::prelude::*;

use super::*;

/// Builds hellos for tests: any list of extensions, true lengths.
struct Draft(Vec<(u16, Vec<u8>)>);

impl Draft {
    fn named(name: &str) -> Self {
        Self(vec![(EXT_SERVER_NAME, sni(&[(0, name.as_bytes())]))])
    }

    fn and(mut self, kind: u16, data: &[u8]) -> Self {
        self.0.push((kind, data.to_vec()));
        self
    }

    fn message(&self) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend_from_slice(&[7; 32]);
        body.extend_from_slice(&[0, 0, 2, 0x13, 1, 1, 0]);
        let mut block = Vec::new();
        for (kind, data) in &self.0 {
            block.extend_from_slice(&kind.to_be_bytes());
            block.extend_from_slice(&(data.len() as u16).to_be_bytes());
            block.extend_from_slice(data);
        }
        body.extend_from_slice(&(block.len() as u16).to_be_bytes());
        body.extend_from_slice(&block);
        let mut message = vec![1];
        message.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
        message.extend_from_slice(&body);
        message
    }

    fn records(&self, cuts: &[usize]) -> Vec<u8> {
        records(&self.message(), cuts)
    }
}

fn records(message: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut cuts: Vec<usize> = cuts.iter().map(|c| c % message.len()).filter(|c| *c > 0).collect();
    cuts.extend([0, message.len()]);
    cuts.sort_unstable();
    cuts.dedup();
    let mut out = Vec::new();
    for pair in cuts.windows(2) {
        let fragment = &message[pair[0]..pair[1]];
        out.extend_from_slice(&[22, 3, 1]);
        out.extend_from_slice(&(fragment.len() as u16).to_be_bytes());
        out.extend_from_slice(fragment);
    }
    out
}

fn sni(names: &[(u8, &[u8])]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, name) in names {
        list.push(*kind);
        list.extend_from_slice(&(name.len() as u16).to_be_bytes());
        list.extend_from_slice(name);
    }
    let mut out = (list.len() as u16).to_be_bytes().to_vec();
    out.extend_from_slice(&list);
    out
}

fn look(raw: &[u8]) -> Result<Option<ClientHello>, Reason> {
    HelloReader::default().look(raw, 1 << 16)
}

#[track_caller]
#[allow(clippy::needless_pass_by_value, reason = "a table of literals reads better")]
fn check(draft: &Draft, expected: Result<Sni, Reason>) {
    let raw = draft.records(&[]);
    assert_eq!(look(&raw).map(|seen| seen.expect("the hello is whole").sni).as_ref(), expected.as_ref());
}

fn named(name: &str) -> Sni {
    Sni::Name(HostName::from_wire(name.as_bytes()).unwrap())
}

#[test]
fn one_name_is_read_and_nothing_else_passes_for_it() {
    check(&Draft::named("a.example"), Ok(named("a.example")));
    check(&Draft::named("A.Example."), Ok(named("a.example")));
    check(&Draft(vec![]), Ok(Sni::Absent));
    check(&Draft::named("10.0.0.1"), Ok(Sni::Address("10.0.0.1".parse().unwrap())));
    check(&Draft::named("::1"), Ok(Sni::Address("::1".parse().unwrap())));
    check(&Draft::named("a b"), Ok(Sni::Malformed { raw: (*b"a b").into(), fault: NameFault::BadByte(b' ') }));
    for bad in [
        sni(&[(0, b"a.example"), (0, b"b.example")]),
        sni(&[(0, b"a.example"), (1, b"b.example")]),
        sni(&[(1, b"a.example")]),
        sni(&[(0, b"")]),
        sni(&[]),
        vec![],
        [sni(&[(0, b"a.example")]), vec![0]].concat(),
    ] {
        check(&Draft(vec![(EXT_SERVER_NAME, bad)]), Err(Reason::BadSni));
    }
    check(&Draft::named("a.example").and(0, &sni(&[(0, b"a.example")])), Err(Reason::BadSni));
}

#[test]
fn a_decoy_inside_another_extension_is_not_the_name() {
    let decoy = [0u16.to_be_bytes().as_slice(), &(14u16).to_be_bytes(), &sni(&[(0, b"evil.example")])].concat();
    check(&Draft(vec![(0xfafa, decoy)]).and(0, &sni(&[(0, b"good.example")])), Ok(named("good.example")));
}

#[test]
fn lengths_that_do_not_add_up_are_refused() {
    let good = Draft::named("a.example").message();
    let mut long_block = good.clone();
    let at = 4 + 2 + 32 + 1 + 4 + 2;
    long_block[at + 1] += 1;
    assert_eq!(look(&records(&long_block, &[])), Err(Reason::BadTls));
    let mut short_block = good.clone();
    short_block[at + 1] -= 1;
    assert_eq!(look(&records(&short_block, &[])), Err(Reason::BadTls));
    let mut trailing = good;
    trailing.push(0);
    trailing[3] += 1;
    assert_eq!(look(&records(&trailing, &[])), Err(Reason::BadTls));
    check(&Draft::named("a.example").and(5, &[]).and(5, &[]), Err(Reason::BadTls));
}

#[test]
fn protocols_versions_and_hidden_names_are_seen() {
    let alpn_list = [2, b'h', b'2', 12].into_iter().chain(*b"konnectivity").collect::<Vec<u8>>();
    let alpn = [(alpn_list.len() as u16).to_be_bytes().to_vec(), alpn_list].concat();
    for bad in [&[][..], &[0], &[0, 1, 0], &[0, 3, 2, b'h'], &[0, 3, 2, b'h', b'2', 0]] {
        check(&Draft::named("a.example").and(EXT_ALPN, bad), Err(Reason::BadTls));
    }
    let hello = Draft::named("a.example")
        .and(EXT_ALPN, &alpn)
        .and(EXT_ECH, &[0])
        .and(EXT_ESNI, &[0])
        .and(EXT_SUPPORTED_VERSIONS, &[6, 0x7a, 0x7a, 3, 4, 3, 3]);
    let hello = look(&hello.records(&[])).unwrap().unwrap();
    assert_eq!(hello.alpn, [Box::from(*b"h2") as Box<[u8]>, Box::from(*b"konnectivity")]);
    assert_eq!((hello.version_name(), hello.ech, hello.esni), ("1.3", true, true));
}

#[test]
fn a_hello_past_the_limit_is_refused_before_it_is_held() {
    let big = Draft::named("a.example").and(21, &vec![0; 60_000]);
    let raw = records(&big.message(), &[16_000, 32_000, 48_000]);
    assert_eq!(HelloReader::default().look(&raw, 10_000), Err(Reason::HelloTooLarge));
    assert!(HelloReader::default().look(&raw, 1 << 16).unwrap().is_some());
    // Many tiny records can outgrow the limit before the message is whole.
    let tiny: Vec<usize> = (0..60_000).collect();
    let raw = records(&big.message(), &tiny);
    assert_eq!(HelloReader::default().look(&raw[..1 << 16], 1 << 16), Err(Reason::HelloTooLarge));
}

proptest! {
    #[test]
    fn any_cut_into_records_and_segments_reads_the_same(
        cuts in proptest::collection::vec(any::<usize>(), 0..40),
        step in 1usize..200,
        label in "[a-z]{1,20}",
        pad in 0usize..3000,
    ) {
        let draft = Draft::named(&format!("{label}.example")).and(21, &vec![0; pad]);
        let raw = draft.records(&cuts);
        let whole = look(&draft.records(&[])).unwrap().unwrap();
        let mut reader = HelloReader::default();
        let mut end = 0;
        while end < raw.len() {
            prop_assert_eq!(reader.look(&raw[..end], 1 << 16), Ok(None));
            prop_assert_eq!(look(&raw[..end]), Ok(None));
            end += step;
        }
        prop_assert_eq!(reader.look(&raw, 1 << 16), Ok(Some(ClientHello { raw_len: raw.len(), ..whole })));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = look(&bytes);
        let _ = look(&records(&[&[1, 0, (bytes.len() >> 8) as u8, bytes.len() as u8], &*bytes].concat(), &[]));
        let _ = parse(&bytes, 0);
    }
}
