//! The ways through: two hops at once, ingress, narrow links, large transfers, and clients' own addresses.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::hop::{POLICY, config, hop, hop_at, page, tcp, udp};
use crate::support::origin::Nginx;
use crate::support::{curl, eventually, pause, run, text};
use crate::world::{
    API_SERVER, CLIENT, DECOY, DECOY6, HOP1, HOP1_WAN, ORIGIN, OUTSIDER, PARTNER, PARTNER6, Through, World, ip,
};

const HOP2_WAN: &str = "20.50.2.4";
/// A router on the way passes on no more than this, and neither end knows.
const NARROW: &[&str] = &["route", "add", "20.70.0.9/32", "dev", "o0", "mtu", "lock", "1280"];

fn echo(port: u16) {
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
                let _ = std::io::copy(&mut from, &mut to);
            });
        }
    });
}

#[test]
fn two_hops_share_the_work_and_ingress_answers_the_way_it_came() {
    let Some(world) = World::build(Through::Both) else { return };
    let mut capture = world.capture();
    let ingress = config(POLICY, "").replace(
        "interfaces: [lan]",
        "interfaces: [lan], dnat: [{ protocol: \"tcp:8080\", to: \"10.224.0.10:8000\" }, { protocol: \"tcp:8081\", to: \"10.224.0.10:8000\", sources: [20.71.0.0/16] }]",
    );
    // Each asks the DNS server on its own link.
    let hops = [("hop1", "20.50.1.1"), ("hop2", "20.50.2.1")]
        .map(|(role, dns)| hop_at(&world, role, &ingress.replace("20.50.1.1", dns)));
    let ca = world.authority.ca();
    world.at("client", || echo(8000));
    for n in 0..30 {
        let resolved = format!("a.example:443:{ORIGIN}");
        let said = world.at("client", || curl(&["--cacert", &ca, "--resolve", &resolved, "https://a.example/who"]));
        assert_eq!(text(&said), "a.example HTTP/2.0 TLSv1.3\n", "{n}");
        assert_eq!(world.at("client", || tcp(PARTNER, 9000)), Ok(()), "{n}");
        assert_eq!(world.at("client", || udp(PARTNER, 1194)), Ok(()), "{n}");
        assert!(world.at("client", || tcp(DECOY, 9000)).is_err(), "{n}");
    }
    let shares = hops.each_ref().map(|egret| egret.records().iter().filter(|line| line["rule"] == "web").count());
    assert!(shares.iter().all(|share| *share >= 3), "{shares:?}");
    for wan in [HOP1_WAN, HOP2_WAN] {
        for n in 0..10 {
            assert_eq!(world.at("outside", || tcp(wan, 8080)), Ok(()), "{wan} {n}");
        }
        assert!(world.at("outside", || tcp(wan, 8081)).is_err(), "not one of its sources");
    }
    assert_eq!(capture.packets(&format!("dst host {DECOY}")).len(), 0);
    capture.saw_nothing(&format!("host {CLIENT}"));
}

#[test]
fn ingress_may_show_the_outside_address_and_sends_no_redirects() {
    let Some(world) = World::build(Through::One) else { return };
    if !crate::support::have(&["python3", "ping"]) {
        return;
    }
    let mut capture = world.capture();
    let ingress = "interfaces: [lan], dnat: [{ protocol: \"tcp:8080\", to: \"10.224.0.10:8000\", snat: false }, { protocol: \"udp:8080\", to: \"10.224.0.10:8000\" }]";
    let _egret = hop(&world, &config(POLICY, "").replace("interfaces: [lan]", ingress));
    let (listener, socket) =
        world.at("client", || (TcpListener::bind("0.0.0.0:8000").unwrap(), UdpSocket::bind("0.0.0.0:8000").unwrap()));
    let served = std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().unwrap();
        let mut said = [0; 5];
        stream.read_exact(&mut said).unwrap();
        stream.write_all(&said).unwrap();
        let (n, source) = socket.recv_from(&mut said).unwrap();
        socket.send_to(&said[..n], source).unwrap();
        [from.ip().to_string(), source.ip().to_string()]
    });
    world.at("outside", || {
        assert_eq!(tcp(HOP1_WAN, 8080), Ok(()));
        assert_eq!(udp(HOP1_WAN, 8080), Ok(()));
    });
    let [shown, masked] = served.join().unwrap();
    assert_eq!(shown, OUTSIDER, "snat: false");
    assert_eq!(masked, HOP1, "as everybody else sees it");
    // Echoes get out and redirections do not, whoever on this machine makes them.
    let says = |family: &str, protocol: &str, kind: u8, to: &str| {
        format!("s.socket(s.{family},s.SOCK_RAW,s.{protocol}).sendto(bytes([{kind},0])+bytes(30),('{to}',0))\n")
    };
    let script = "import socket as s\ntry:\n ".to_owned()
        + &says("AF_INET", "IPPROTO_ICMP", 5, PARTNER)
        + "except PermissionError: pass\ntry:\n "
        + &says("AF_INET6", "IPPROTO_ICMPV6", 137, PARTNER6)
        + "except PermissionError: pass\n"
        + &says("AF_INET", "IPPROTO_ICMP", 9, PARTNER);
    let said = world.at("hop1", || {
        eventually("the way is known", || run("ping", &["-c1", "-W1", PARTNER6]).status.success());
        run("python3", &["-c", &script])
    });
    assert!(said.status.success(), "{}", text(&said));
    assert_eq!(capture.packets("icmp[0] == 9").len(), 1);
    assert!(!capture.packets("icmp6 and ip6[40] == 128").is_empty());
    capture.saw_nothing("icmp[0] == 5 or (icmp6 and ip6[40] == 137)");
    capture.saw_nothing(&format!("host {CLIENT}"));
}

#[test]
fn no_name_leads_to_what_the_hop_has_just_become() {
    let Some(world) = World::build(Through::One) else { return };
    let service = world.at("hop1", || TcpListener::bind("[::]:443").unwrap());
    service.set_nonblocking(true).unwrap();
    let resolved = format!("a.example:443:{ORIGIN}");
    // An interface's address, and a frontend's, which no interface bears.
    for (what, own) in [
        (["addr", "add", "20.60.88.8/32", "dev", "lo"].as_slice(), "20.60.88.8"),
        (&["route", "add", "local", "20.60.89.0/24", "dev", "lo"], "20.60.89.7"),
        (&["-6", "route", "add", "local", "2a01:89::/64", "dev", "lo"], "2a01:89::7"),
    ] {
        world.dns.answer("a.example", &[own]);
        let egret = hop(&world, &config(POLICY, ""));
        world.at("hop1", || ip(what));
        let said = world.at("client", || curl(&["-k", "--resolve", &resolved, "https://a.example/"]));
        assert!(!said.status.success());
        let line = egret.last("a.example");
        assert_eq!(line["reason"], "own_address", "{line:#}");
        assert!(service.accept().is_err(), "{own}");
    }
}

#[test]
fn no_client_speaks_to_strangers_through_the_hops_own_answers() {
    let Some(world) = World::build(Through::One) else { return };
    if !crate::support::have(&["python3", "ping"]) {
        return;
    }
    let mut capture = world.capture();
    let ingress = "dnat: [{ protocol: \"udp:8080\", to: \"10.224.0.10:8000\" }]";
    for interfaces in ["interfaces: [lan], ", ""] {
        let _egret = hop(&world, &config(POLICY, "").replace("interfaces: [lan]", &format!("{interfaces}{ingress}")));
        let served = world.at("client", || UdpSocket::bind("0.0.0.0:8000").unwrap());
        served.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let answered = std::thread::spawn(move || {
            // The outsider's own, and nobody's beside it.
            let mut said = [0; 16];
            let (n, source) = served.recv_from(&mut said).unwrap();
            served.send_to(&said[..n], source).unwrap();
            said[..n].to_vec()
        });
        // As the decoy to the hop's own addresses: echoes, closed and translated ports, unknown protocols, options that
        // no host knows (RFC 8200 §4.2), and fragments without their rest.
        let forge = format!(
            "import socket as s,struct,sys\n\
            four=s.socket(s.AF_INET,s.SOCK_RAW,s.IPPROTO_RAW)\nsix=s.socket(s.AF_INET6,s.SOCK_RAW,s.IPPROTO_RAW)\n\
            def csum(b):\n\
            \x20t=sum(struct.unpack('!%dH'%(len(b)//2),b)); t=(t>>16)+(t&65535); return ~(t+(t>>16))&65535\n\
            udp=lambda port: struct.pack('!HHHH',4444,port,8+12,0)+b'LEAKLEAKLEAK'\n\
            echo=bytes([8,0])+struct.pack('!H',csum(bytes([8,0,0,0,0,1,0,1])+b'LEAKLEAK'))+bytes([0,1,0,1])+b'LEAKLEAK'\n\
            for dst in sys.argv[2].split():\n\
            \x20for p,body in (1,echo),(17,udp(8080)),(17,udp(9)),(17,udp(9902)),(200,b'LEAK'),(6,struct.pack('!HHIIBBHHH',4444,9902,1,0,80,2,999,0,0)):\n\
            \x20 for frag in (0,0x2000) if p==17 else (0,):\n\
            \x20  four.sendto(struct.pack('!BBHHHBBH',69,0,20+len(body),7,frag,64,p,0)+s.inet_aton('{DECOY}')+s.inet_aton(dst)+body,(dst,0))\n\
            for dst in sys.argv[3].split():\n\
            \x20a,b=s.inet_pton(s.AF_INET6,'{DECOY6}'),s.inet_pton(s.AF_INET6,dst)\n\
            \x20e=bytes([128,0,0,0,0,1,0,1])+b'LEAKLEAK'\n\
            \x20e=e[:2]+struct.pack('!H',csum(a+b+struct.pack('!II',len(e),58)+e))+e[4:]\n\
            \x20for n,body in (58,e),(17,udp(9)),(200,b'LEAK'),(0,bytes([59,0,0x9e,4])+b'LEAK'),(44,bytes([17,0,0,1,0,0,0,7])+udp(9)[:16]):\n\
            \x20 six.sendto(struct.pack('!IHBB',6<<28,len(body),n,64)+a+b+body,(dst,0,0,s.if_nametoindex(sys.argv[1])))\n"
        );
        let on_the_link = ("fabric", "h1", "", "fd00:2251::4 ff02::1 fd00:2251::");
        let beyond = ("client", "eth0", "10.225.1.4 20.50.1.4", "fd00:2251::4 2a01:50:1::4");
        world.at("hop1", || {
            for seconds in ["ipv4/ipfrag_time", "ipv6/ip6frag_time", "netfilter/nf_conntrack_frag6_timeout"] {
                std::fs::write(format!("/proc/sys/net/{seconds}"), "1").unwrap();
            }
        });
        for (role, link, four, six) in [on_the_link, beyond] {
            let said = world.at(role, || run("python3", &["-c", &forge, link, four, six]));
            assert!(said.status.success(), "{}", text(&said));
        }
        // Until the rest of a fragment comes no more.
        (0..200).for_each(|_| pause());
        assert_eq!(world.at("outside", || udp(HOP1_WAN, 8080)), Ok(()), "honest ingress");
        assert_eq!(answered.join().unwrap(), b"hello");
        assert!(world.at("outside", || run("ping", &["-c1", "-W2", HOP1_WAN]).status.success()));
    }
    capture.saw_nothing(&format!("dst host {DECOY} or dst host {DECOY6}"));
}

#[test]
fn no_client_shows_the_way_and_metadata_in_disguise_is_closed_to_all() {
    let Some(world) = World::build(Through::One) else { return };
    if !crate::support::have(&["python3"]) {
        return;
    }
    let mut capture = world.capture();
    let policy = POLICY.to_owned()
        + "    - { name: disguises, destinations: [\"64:ff9b::/96\", \"64:ff9b:1::/48\", \"2001::/32\", \"2002::/16\"], protocols: [\"tcp:22\"] }\n";
    let _egret = hop(&world, &config(&policy, ""));
    let away = |to: &str| world.at("hop1", || text(&run("ip", &["-6", "route", "get", to])));
    // A router's words: a prefix on this link, and itself as the preferred way, from a link-local address with hop limit 255.
    let router = "import socket as s,struct,time\n\
        k=s.socket(s.AF_INET6,s.SOCK_RAW,s.IPPROTO_ICMPV6)\n\
        k.setsockopt(s.IPPROTO_IPV6,s.IPV6_MULTICAST_HOPS,255)\n\
        k.setsockopt(s.IPPROTO_IPV6,s.IPV6_MULTICAST_IF,s.if_nametoindex('h1'))\n\
        p=struct.pack('!BBBBIII',3,4,64,0xc0,9000,9000,0)+s.inet_pton(s.AF_INET6,'2a01:60::')\n\
        for n in range(30):\n\
        \x20k.sendto(struct.pack('!BBHBBHII',134,0,0,64,8,1800,0,0)+p,('ff02::1',0,0,s.if_nametoindex('h1')))\n\
        \x20time.sleep(.1)\n";
    // For as long as it takes until the link's own address is one.
    assert!(world.at("fabric", || run("python3", &["-c", router]).status.success()));
    for to in [PARTNER6, "2a01:99::1"] {
        assert!(away(to).contains("dev wan"), "{}", away(to));
    }
    eventually("IPv6 goes through", || world.at("client", || tcp(PARTNER6, 9000)) == Ok(()));
    // What some translator or tunnel would unwrap, each beside a neighbour.
    let connect = |to: &str| {
        let to = std::net::SocketAddr::new(to.parse().unwrap(), 22);
        world.at("client", || TcpStream::connect_timeout(&to, Duration::from_millis(300)).map_err(|e| e.kind()))
    };
    let disguises = [
        ("64:ff9b::a9fe:a9fe", "64:ff9b::a9fe:a9fd"),
        ("64:ff9b:1::a83f:8110", "64:ff9b:1::a83f:8111"),
        ("64:ff9b:1:a9fe:a9:fe00::1", "64:ff9b:1:a9fe:a9:fd00::1"),
        ("64:ff9b:1:12a9:fe:a9fe::", "64:ff9b:1:12a9:fe:a9fd::"),
        ("64:ff9b:1:1234:a8:3f81:1000:0", "64:ff9b:1:1234:a8:3f81:1100:0"),
        ("2001:0:1::5601:5601", "2001:0:1::5601:5602"),
        ("2002:a9fe:a9fe::1", "2002:a9fe:a9fd::1"),
    ];
    for (hidden, neighbour) in disguises {
        assert_eq!(connect(hidden).unwrap_err(), std::io::ErrorKind::ConnectionRefused, "{hidden}");
        let _ = connect(neighbour);
    }
    for (hidden, neighbour) in disguises {
        capture.saw_nothing(&format!("dst host {hidden}"));
        assert!(!capture.packets(&format!("dst host {neighbour}")).is_empty(), "{neighbour}");
    }
}

#[test]
fn narrow_links_and_large_transfers_are_no_hindrance() {
    let Some(world) = World::build(Through::One) else { return };
    let policy = POLICY.to_owned()
        + &format!(
            "    - {{ name: outside, destinations: [{OUTSIDER}/32, {API_SERVER}/32], protocols: [\"tcp:9000\", \"udp:9000\"] }}\n"
        );
    let mut capture = world.capture();
    let _egret = hop(&world, &config(&policy, ""));
    // Behind the internet there is a narrow link, which only ICMP tells of.
    world.at("internet", || {
        ip(NARROW);
    });
    world.at("outside", || {
        echo(9000);
    });
    world.at("client", || {
        let mut stream = TcpStream::connect((OUTSIDER, 9000)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        let sent: Vec<u8> = (0..2_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut back = stream.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; 2_000_000];
            back.read_exact(&mut all).map(|()| all)
        });
        stream.write_all(&sent).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), sent);
    });
    // Cut datagrams go through, put together and judged as a whole.
    world.at("client", || {
        let cut = |to: &str| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect((to, 1194)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket.send(&[7; 2000]).unwrap();
            socket.recv(&mut [0; 2048]).map_err(|e| e.kind())
        };
        assert_eq!(cut(PARTNER), Ok(2000));
        assert_eq!(cut(DECOY), Err(std::io::ErrorKind::ConnectionRefused));
    });
    // The hop's own narrow link: datagrams that may not be cut are answered for, so that their sender learns.
    world.at("hop1", || ip(&["link", "set", "wan", "mtu", "1300"]));
    world.at("client", || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((PARTNER, 1194)).unwrap();
        eventually("the path's MTU is learned", || socket.send(&[0; 1400]).is_err());
        // Nobody there: what is sent shows all.
        assert!(tcp(API_SERVER, 9000).is_err());
    });
    let opened = capture.packets(&format!("dst host {API_SERVER} and tcp[tcpflags] & tcp-syn != 0"));
    assert!(opened.iter().all(|syn| syn.contains("mss 1260")) && !opened.is_empty(), "{opened:?}");
    capture.saw_nothing(&format!("dst host {DECOY}"));
    // By name, through egret: up and down, over both narrow links.
    let big = vec![7; 30_000_000];
    world.nginx(ORIGIN, "big", &big);
    let ca = world.authority.ca();
    let file = tempfile::NamedTempFile::new().unwrap();
    let resolved = format!("a.example:443:{ORIGIN}");
    let path = file.path().to_str().unwrap();
    let said =
        world.at("client", || curl(&["--cacert", &ca, "--resolve", &resolved, "-o", path, "https://a.example/big"]));
    assert!(said.status.success(), "{}", text(&said));
    assert!(std::fs::read(file.path()).unwrap() == big);
}

#[test]
fn an_api_server_is_reached_by_its_address_alone() {
    let Some(world) = World::build(Through::One) else { return };
    let bundle = format!(
        "\n  bundles: [{{ bundle: aks, location: westeurope, sources: [10.224.0.0/16], api_server: api.example }}]\n  network_rules:\n    - {{ name: tunnel, destinations: [{PARTNER}/32], protocols: [\"tcp:9000\"] }}\n"
    );
    let egret = hop(&world, &config(&bundle, ""));
    let get = |host: &str| {
        let url = format!("https://{host}/hello");
        world.at("client", || curl(&["-k", "--max-time", "5", &url]))
    };
    eventually("the API server is known", || text(&get(API_SERVER)) == "hello\n");
    assert!(!get(ORIGIN).status.success(), "another address without a name is not");
    let line = egret.record("the other one", |line| line["original_dst"] == format!("{ORIGIN}:443"));
    assert!(
        line["reason"] == "no_sni" && line["nearest"].as_str().unwrap().contains("set-kube-service-host-fqdn"),
        "{line:#}"
    );
    assert_eq!(world.at("client", || tcp(PARTNER, 9000)), Ok(()));
}

#[test]
fn what_was_found_for_a_name_outlives_a_restart_and_dns() {
    let Some(world) = World::build(Through::One) else { return };
    world.dns.answer("time.example", &[PARTNER]);
    let state = tempfile::tempdir().unwrap();
    let text = config(POLICY, "").replace("state_dir: state", &format!("state_dir: {}", state.path().display()));
    let mut egret = hop(&world, &text);
    eventually("time.example is learned", || world.at("client", || udp(PARTNER, 123)) == Ok(()));
    eventually("it is written down", || state.path().join("learned.json").exists());
    egret.signal("TERM");
    egret.wait();
    world.at("hop1", || {
        assert!(page("readyz").is_empty());
        assert!(run("nft", &["flush", "ruleset"]).status.success());
    });
    assert!(world.at("client", || udp(PARTNER, 123)).is_err());
    let deaf = text.replace("20.50.1.1", "20.50.1.99");
    let _egret = hop(&world, &deaf);
    assert_eq!(world.at("client", || udp(PARTNER, 123)), Ok(()), "without one answer");
}

#[test]
fn upstreams_may_see_the_clients_own_address() {
    let Some(world) = World::build(Through::One) else { return };
    world.at("internet", || ip(&["route", "add", "10.224.0.0/16", "via", HOP1_WAN]));
    let mut capture = world.capture();
    // A narrow link behind the internet, of which only ICMP tells, and to the client's address.
    world.at("internet", || ip(NARROW));
    let far = world
        .at("outside", || Nginx::start(&world.authority, OUTSIDER.parse().unwrap(), 443, 80, &["far.example"], ""));
    world.dns.answer("far.example", &[OUTSIDER]);
    let policy = POLICY.replace("fqdns: [a.example]", "fqdns: [a.example, far.example]");
    let text_of = config(&policy, "")
        .replace("capture: tproxy", "capture: tproxy, preserve_source: true")
        .replace("interfaces: [lan]", "interfaces: [lan], snat: none");
    let egret = hop(&world, &text_of);
    let ca = world.authority.ca();
    let resolved = format!("a.example:443:{ORIGIN}");
    for _ in 0..5 {
        let said = world.at("client", || curl(&["--cacert", &ca, "--resolve", &resolved, "https://a.example/who"]));
        assert_eq!(text(&said), "a.example HTTP/2.0 TLSv1.3\n");
    }
    assert_eq!(world.at("client", || tcp(PARTNER, 9000)), Ok(()));
    assert!(world.at("client", || tcp(DECOY, 9000)).is_err());
    let upload = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(upload.path(), vec![7; 2_000_000]).unwrap();
    let (data, resolved) = (format!("@{}", upload.path().display()), format!("far.example:443:{OUTSIDER}"));
    let args =
        ["--cacert", &ca, "--resolve", &resolved, "--http1.1", "--data-binary", &data, "https://far.example/who"];
    assert_eq!(text(&world.at("client", || curl(&args))), "far.example HTTP/1.1 TLSv1.3\n");
    let line = egret.record("the upload", |line| line["name"] == "far.example");
    assert!(line["bytes_up"].as_u64().unwrap() > 2_000_000, "{line:#}");
    drop(far);
    assert_eq!(egret.last("a.example")["upstream"], format!("{ORIGIN}:443"));
    assert!(!capture.packets(&format!("src host {CLIENT} and dst host {ORIGIN} and dst port 443")).is_empty());
    capture.saw_nothing(&format!("src host {HOP1_WAN} and dst host {ORIGIN}"));
    capture.saw_nothing(&format!("dst host {DECOY}"));
}

#[test]
fn a_pool_of_addresses_serves_kernel_and_egret_alike() {
    let Some(world) = World::build(Through::One) else { return };
    world.at("hop1", || ["20.50.1.10/24", "20.50.1.11/24"].iter().for_each(|a| ip(&["addr", "add", a, "dev", "wan"])));
    let mut capture = world.capture();
    let _egret = hop(&world, &config(POLICY, "upstream: { sources: [20.50.1.10, 20.50.1.11] }"));
    let ca = world.authority.ca();
    let resolved = format!("a.example:443:{ORIGIN}");
    let said = world.at("client", || curl(&["--cacert", &ca, "--resolve", &resolved, "https://a.example/who"]));
    assert_eq!(text(&said), "a.example HTTP/2.0 TLSv1.3\n");
    assert_eq!(world.at("client", || tcp(PARTNER, 9000)), Ok(()));
    assert_eq!(world.at("client", || udp(PARTNER, 1194)), Ok(()));
    let pool = "(src host 20.50.1.10 or src host 20.50.1.11)";
    assert!(!capture.packets(&format!("{pool} and dst host {ORIGIN}")).is_empty());
    assert!(!capture.packets(&format!("{pool} and dst host {PARTNER} and tcp")).is_empty());
    capture.saw_nothing(&format!("src host {HOP1_WAN} and (dst host {ORIGIN} or dst host {PARTNER})"));
}

#[test]
fn one_interface_is_enough() {
    let Some(world) = World::build(Through::One) else { return };
    // As on a machine with one network card: what comes in leaves by the same way, and the fabric knows the internet.
    world.at("hop1", || {
        ip(&["route", "replace", "default", "via", "10.225.1.1"]);
        ip(&["link", "set", "wan", "down"]);
    });
    world.at("fabric", || {
        ip(&["rule", "add", "from", "10.225.1.4", "lookup", "50"]);
        ip(&["route", "add", "default", "via", "10.226.0.53", "table", "50"]);
    });
    world.at("internet", || ip(&["route", "add", "10.225.1.0/24", "via", "10.226.0.1"]));
    world.dns.answer("time.example", &[PARTNER]);
    let mut capture = world.capture();
    let text_of = config(POLICY, "").replace("interfaces: [lan]", "interfaces: []").replace("20.50.1.1", "10.226.0.53");
    let egret = hop(&world, &text_of);
    let ca = world.authority.ca();
    let said = world.curl(&["-4", "--cacert", &ca, "https://a.example/who"]);
    assert_eq!(text(&said), "a.example HTTP/2.0 TLSv1.3\n");
    assert_eq!(egret.last("a.example")["original_dst"], format!("{ORIGIN}:443"));
    world.at("client", || {
        assert_eq!(tcp(PARTNER, 9000), Ok(()));
        assert_eq!(udp(PARTNER, 1194), Ok(()));
        eventually("time.example is learned", || udp(PARTNER, 123) == Ok(()));
        assert!(tcp(DECOY, 9000).is_err() && udp(DECOY, 1194).is_err());
    });
    // A forged source is not answered, and not forwarded.
    world.at("fabric", || {
        ip(&["addr", "add", "20.99.0.1/32", "dev", "lo"]);
        let args = ["-c1", "-W1", "-I", "20.99.0.1", DECOY];
        ip(&["route", "add", DECOY, "via", "10.225.1.4"]);
        assert!(!run("ping", &args).status.success());
    });
    world.at("hop1", || assert!(run("nft", &["flush", "ruleset"]).status.success()));
    world.at("client", || assert!(tcp(PARTNER, 9000).is_err() && udp(DECOY, 1194).is_err()));
    assert!(!capture.packets(&format!("dst host {PARTNER}")).is_empty());
    capture.saw_nothing(&format!("dst host {DECOY}"));
}

#[test]
fn bypassed_networks_see_the_client_and_the_hop_itself_is_closed() {
    let Some(world) = World::build(Through::One) else { return };
    world.at("internet", || ip(&["route", "add", "10.224.0.0/16", "via", HOP1_WAN]));
    let mut capture = world.capture();
    let text_of = config(POLICY, "").replace("interfaces: [lan]", "interfaces: [lan], bypass: [20.60.9.0/24]");
    let egret = hop(&world, &text_of);
    let ca = world.authority.ca();
    let said = world.curl(&["-k", &format!("https://{API_SERVER}/hello")]);
    assert_eq!(text(&said), "hello\n");
    // With the network's own DNS, and nothing that tells of egret.
    let said = world.curl(&["--cacert", &ca, "https://a.example/who"]);
    assert_eq!(text(&said), "a.example HTTP/2.0 TLSv1.3\n");
    let dialled = world.at("client", || TcpStream::connect(("10.225.1.4", 3129)).map(|s| s.local_addr().unwrap()));
    let line = egret.record_of(dialled.unwrap());
    assert!(line["reason"] == "no_original_dst" && line["stage"] == "claim", "{line:#}");
    assert!(world.at("client", || TcpStream::connect(("10.225.1.4", 9902)).is_err()), "the probe's port");
    assert!(!capture.packets(&format!("src host {CLIENT} and dst host {API_SERVER} and dst port 443")).is_empty());
    capture.saw_nothing(&format!("src host {CLIENT} and not dst host {API_SERVER}"));
}
