//! Whether this device has a route to other hosts, by its routing table: nothing is sent to find
//! out.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::lookup_host;
use tokio::time::timeout;

/// Addresses beyond every local network: those for documentation, which no host has (RFC 5737, RFC
/// 3849).
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
/// A port, of which any will do.
const DISCARD: u16 = 9;
/// Limit of a name lookup. A name that resolves without a default route is in a file, or known to a
/// neighbour.
const LOOKUP_LIMIT: Duration = Duration::from_secs(2);

/// Whether this device is in any network, with a default route or without: then the cable is not
/// the cause of a name that cannot be resolved.
pub(crate) fn is_in_a_network() -> bool {
    // Below /proc/self, which the sandbox of the unit leaves in sight.
    let table_has =
        |file: &str, is: fn(&str) -> bool| std::fs::read_to_string(file).is_ok_and(|table| is(&table));
    leads_anywhere()
        || table_has("/proc/self/net/route", has_route)
        || table_has("/proc/self/net/if_inet6", has_address)
}

/// Whether there is an IPv4 route that is up and not to this device itself (`linux/route.h`).
fn has_route(table: &str) -> bool {
    let is_up = |flags: &str| u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x201 == 0x1);
    table.lines().skip(1).any(|line| {
        let mut columns = line.split_whitespace();
        columns.next().is_some_and(|interface| interface != "lo") && columns.nth(2).is_some_and(is_up)
    })
}

/// Whether there is an IPv6 address of more than link scope (scope 0: global).
fn has_address(table: &str) -> bool {
    table.lines().any(|line| {
        let mut columns = line.split_whitespace();
        columns.nth(3) == Some("00") && columns.nth(1).is_some_and(|interface| interface != "lo")
    })
}

/// Whether there is a default route.
pub(crate) fn leads_anywhere() -> bool {
    ANYWHERE.iter().any(|address| leads_to_address((*address, DISCARD).into()))
}

/// Whether a packet to this host (a name, or an address without brackets) would leave: there is a
/// default route, or one to the host itself. Takes 2 seconds at most. `true` where the kernel does
/// not say.
pub(crate) async fn leads_to(host: &str, port: u16) -> bool {
    if leads_anywhere() {
        return true;
    }
    let found = timeout(LOOKUP_LIMIT, lookup_host((host, port))).await;
    found.is_ok_and(|found| found.is_ok_and(|mut addresses| addresses.any(leads_to_address)))
}

/// Connecting a UDP socket reads the routing table and sends nothing (udp(7)).
fn leads_to_address(address: SocketAddr) -> bool {
    let own: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let connected = UdpSocket::bind((own, 0)).and_then(|socket| socket.connect(address));
    !connected.is_err_and(|e| says_there_is_none(&e))
}

fn says_there_is_none(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::HostUnreachable
            | ErrorKind::AddrNotAvailable
    ) || e.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) // no IPv6 here at all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn route_to_loopback_always_exists() {
        assert!(leads_to("127.0.0.1", 1).await);
    }

    #[test]
    fn network_without_default_route_counts() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        for (rows, is) in [
            ("", false),
            ("eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n", true),
            ("lo\t0000007F\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n", false),
            ("*\t00000000\t00000000\t0200\t0\t0\t0\t00000000\t0\t0\t0\n", false),
            ("eth0\n", false),
        ] {
            assert_eq!(has_route(&format!("{head}{rows}")), is, "{rows}");
        }
        for (rows, is) in [
            ("00000000000000000000000000000001 01 80 10 80       lo\n", false),
            ("fe80000000000000a00027fffe000001 02 40 20 80     eth0\n", false),
            ("20010db8000000000000000000000001 02 40 00 80     eth0\n", true),
            ("20010db8000000000000000000000001 01 40 00 80       lo\n", false),
            ("", false),
        ] {
            assert_eq!(has_address(rows), is, "{rows}");
        }
    }

    #[test]
    fn missing_route_is_told_from_other_errors() {
        let says = |errno: Errno| says_there_is_none(&io::Error::from_raw_os_error(errno as i32));
        for none in [
            Errno::ENETUNREACH,
            Errno::ENETDOWN,
            Errno::EHOSTUNREACH,
            Errno::EADDRNOTAVAIL,
            Errno::EAFNOSUPPORT,
        ] {
            assert!(says(none), "{none}");
        }
        for other in [Errno::EPERM, Errno::EACCES, Errno::EMFILE, Errno::EINVAL, Errno::ECONNREFUSED] {
            assert!(!says(other), "{other}");
        }
    }
}
