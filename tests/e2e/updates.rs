//! Machines keep themselves up to date through egret: apt and wget against a repository served by nginx.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::clients::{HTTP, World, world};
use crate::support::{allowed, have, refused, run, text};

/// The packages of the repository and their sizes on disk, in bytes: one that fits a packet, one that does not fit a buffer.
const PACKAGES: [(&str, usize); 3] = [("egret-small", 10), ("egret-large", 8 << 20), ("egret-other", 70_000)];

/// Puts a flat repository under nginx's root: packages made by `dpkg-deb`, and their index.
fn repository(w: &World) {
    let root = w.nginx.root.path().join("repository");
    fs::create_dir(&root).unwrap();
    let mut index = String::new();
    for (package, size) in PACKAGES {
        let tree = tempfile::tempdir().unwrap();
        let control = format!(
            "Package: {package}\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@web.test>\nDescription: {package}\n"
        );
        fs::create_dir_all(tree.path().join("DEBIAN")).unwrap();
        fs::write(tree.path().join("DEBIAN/control"), &control).unwrap();
        fs::write(tree.path().join("payload"), noise(size)).unwrap();
        let file = root.join(format!("{package}.deb"));
        let built = run("dpkg-deb", &["--root-owner-group", "-b", path(tree.path()), path(&file)]);
        assert!(built.status.success(), "{}", text(&built));
        let sum = text(&run("sha256sum", &[path(&file)]));
        let sum = sum.split(' ').next().unwrap();
        let length = fs::metadata(&file).unwrap().len();
        index += &format!("{control}Filename: ./{package}.deb\nSize: {length}\nSHA256: {sum}\n\n");
    }
    fs::write(root.join("Packages"), index).unwrap();
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// apt with a state of its own that knows only the test's repositories.
struct Apt {
    folder: tempfile::TempDir,
}

impl Apt {
    fn new(w: &World, hosts: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().display();
        for sub in ["state/lists/partial", "cache/archives/partial", "etc/preferences.d", "here"] {
            fs::create_dir_all(folder.path().join(sub)).unwrap();
        }
        fs::write(folder.path().join("status"), "").unwrap();
        let sources: String =
            hosts.iter().map(|host| format!("deb [trusted=yes] http://{host}:{HTTP}/repository ./\n")).collect();
        fs::write(folder.path().join("sources.list"), sources).unwrap();
        let config = format!(
            "Dir::State \"{dir}/state\"; Dir::State::status \"{dir}/status\"; Dir::Cache \"{dir}/cache\";\n\
             Dir::Etc \"{dir}/etc\"; Dir::Etc::sourcelist \"{dir}/sources.list\"; Dir::Etc::sourceparts \"/dev/null\";\n\
             APT::Sandbox::User \"root\"; Acquire::Retries \"0\"; Acquire::Languages \"none\";\n\
             Acquire::http::Proxy \"http://{}\";\n",
            w.egret.forward()
        );
        fs::write(folder.path().join("apt.conf"), config).unwrap();
        Self { folder }
    }

    fn get(&self, args: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["60", "apt-get", "-y"]).args(args).current_dir(self.folder.path().join("here"));
        command.env("APT_CONFIG", self.folder.path().join("apt.conf")).env("LC_ALL", "C").env_remove("http_proxy");
        command.output().unwrap()
    }
}

#[test]
fn apt_updates_and_downloads_from_a_listed_host_over_few_connections() {
    let Some(w) = world("") else { return };
    if !have(&["apt-get", "dpkg-deb", "sha256sum"]) {
        return;
    }
    repository(&w);
    let apt = Apt::new(&w, &["a.web.test"]);
    let updated = apt.get(&["update"]);
    assert!(updated.status.success(), "{}", text(&updated));
    let mut download = vec!["download"];
    download.extend(PACKAGES.iter().map(|(package, _)| *package));
    let downloaded = apt.get(&download);
    assert!(downloaded.status.success(), "{}", text(&downloaded));
    for (package, _) in PACKAGES {
        let served = fs::read(w.nginx.root.path().join(format!("repository/{package}.deb"))).unwrap();
        let got = fs::read(apt.folder.path().join(format!("here/{package}_1.0_all.deb"))).unwrap();
        assert!(served == got, "{package} came through changed");
    }
    let is_package = |line: &&str| line.contains(".deb HTTP/1.1\" 200");
    let log = fs::read_to_string(w.nginx.root.path().join("access.log")).unwrap();
    assert_eq!(log.lines().filter(is_package).count(), PACKAGES.len(), "{log}");
    let record = w.egret.record("the large package", |r| r["bytes_down"].as_u64() > Some(8 << 20));
    allowed(&record, "web");
    assert_eq!((&record["event"], &record["status"], &record["method"]), (&"http".into(), &200.into(), &"GET".into()));
    let clients: std::collections::HashSet<String> =
        w.egret.records().iter().filter(|r| r["status"] == 200).map(|r| r["client"].to_string()).collect();
    assert!(clients.len() <= 2, "apt kept a connection for its update and one for its packages: {clients:?}");
}

#[test]
fn apt_reads_of_a_host_off_the_list_and_still_updates_from_the_others() {
    let Some(w) = world("") else { return };
    if !have(&["apt-get", "dpkg-deb", "sha256sum"]) {
        return;
    }
    repository(&w);
    let apt = Apt::new(&w, &["evil.test", "a.web.test"]);
    let updated = text(&apt.get(&["update"]));
    assert!(updated.contains("403  Forbidden"), "{updated}");
    let downloaded = apt.get(&["download", "egret-small"]);
    assert!(downloaded.status.success(), "{}", text(&downloaded));
    refused(&w.egret.last("evil.test"), "no_rule", "name");
    assert_eq!(w.dns.asked("evil.test"), 0);
}

#[test]
fn wget_fetches_resumes_and_is_refused_by_name() {
    let Some(w) = world("") else { return };
    if !have(&["wget"]) {
        return;
    }
    let body = noise(3 << 20);
    fs::write(w.nginx.root.path().join("body"), &body).unwrap();
    let here = tempfile::tempdir().unwrap();
    let file = here.path().join("body");
    let (proxy, into) =
        (format!("http_proxy=http://{}", w.egret.forward()), format!("--output-document={}", path(&file)));
    let wget = |host: &str| {
        let url = format!("http://{host}:{HTTP}/body");
        run(
            "wget",
            &["--no-config", "--tries=1", "-nv", "--continue", &into, "-e", "use_proxy=yes", "-e", &proxy, &url],
        )
    };
    fs::write(&file, &body[..1 << 20]).unwrap();
    let got = wget("a.web.test");
    assert!(got.status.success(), "{}\n{:#?}", text(&got), w.egret.records());
    assert!(fs::read(&file).unwrap() == body, "the rest came through changed");
    assert_eq!(w.egret.last("a.web.test")["status"], 206);
    let got = wget("evil.test");
    assert!(text(&got).contains("403"), "{}", text(&got));
    refused(&w.egret.last("evil.test"), "no_rule", "name");
}
