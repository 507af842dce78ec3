//! How many bytes written to a connection the kernel still holds: those that its client has not acknowledged.
//!
//! Asked with `sock_diag(7)`, as `ss` does: the ioctl for it (`SIOCOUTQ`) has no wrapper without `unsafe`.

use std::net::{IpAddr, SocketAddr};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};
use tokio::net::TcpStream;

/// `SOCK_DIAG_BY_FAMILY`, the type of the request and of the answer.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST`
const REQUEST: u16 = 1;
/// `struct nlmsghdr`
const HEAD_BYTES: u32 = 16;
/// `struct inet_diag_req_v2`
const REQUEST_BYTES: u32 = 56;
/// Offset of `idiag_wqueue` in the response: after the head, four bytes, `struct inet_diag_sockid` and two numbers.
const WQUEUE_AT: usize = 16 + 4 + 48 + 8;
const TCP: u8 = 6;

/// Bytes that were written and not acknowledged; none if the kernel does not report it.
pub(super) fn bytes(stream: &TcpStream) -> Option<u32> {
    let request = request(stream.local_addr().ok()?, stream.peer_addr().ok()?);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kernel = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::SOCK_DIAG)).ok()?;
    send(&kernel, &request, SendFlags::empty()).ok()?;
    let mut answer = [0; 512];
    // The kernel answers within the send.
    let (_, length) = recv(&kernel, &mut answer, RecvFlags::empty()).ok()?;
    wqueue(answer.get(..length)?)
}

fn request(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let scope = match local {
        SocketAddr::V6(local) => local.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    // IPv4 connections to an IPv6 socket are in the table of IPv4.
    let (local_ip, remote_ip) = (local.ip().to_canonical(), remote.ip().to_canonical());
    let family = if local_ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let mut request = Vec::with_capacity((HEAD_BYTES + REQUEST_BYTES) as usize);
    request.extend((HEAD_BYTES + REQUEST_BYTES).to_ne_bytes());
    request.extend([BY_FAMILY, REQUEST].map(u16::to_ne_bytes).concat());
    // No sequence number, and no port id.
    request.extend([0; 8]);
    request.extend([family.as_raw().to_ne_bytes()[0], TCP, 0, 0]);
    // Sockets in any state.
    request.extend(u32::MAX.to_ne_bytes());
    request.extend([local.port(), remote.port()].map(u16::to_be_bytes).concat());
    request.extend(sixteen(local_ip));
    request.extend(sixteen(remote_ip));
    request.extend(scope.to_ne_bytes());
    // `INET_DIAG_NOCOOKIE`: the addresses identify the socket.
    request.extend([0xff; 8]);
    request
}

fn sixteen(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn wqueue(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
    let number = *answer.get(WQUEUE_AT..)?.first_chunk()?;
    (kind == BY_FAMILY).then_some(u32::from_ne_bytes(number))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn is_seen_to_take(listen: SocketAddr, connect: IpAddr) {
        let listener = TcpListener::bind(listen).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect((connect, port)).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        assert_eq!(bytes(&server), Some(0));
        while server.try_write(&[0; 65_536]).is_ok() {}
        let mut held = bytes(&server).unwrap();
        assert!(held > 0);
        // The kernel releases the bytes as they are acknowledged, in the end all of them.
        let mut taken = vec![0; 65_536];
        while held > 0 {
            tokio::select! {
                read = client.read(&mut taken) => assert!(read.unwrap() > 0),
                () = tokio::time::sleep(std::time::Duration::from_millis(5)) => {}
            }
            let now = bytes(&server).unwrap();
            assert!(now <= held, "nothing was written meanwhile");
            held = now;
        }
    }

    #[tokio::test]
    async fn what_a_client_takes_is_seen_in_both_families() {
        is_seen_to_take((Ipv4Addr::LOCALHOST, 0).into(), Ipv4Addr::LOCALHOST.into()).await;
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
            is_seen_to_take((Ipv6Addr::LOCALHOST, 0).into(), Ipv6Addr::LOCALHOST.into()).await;
            // An IPv4 address on an IPv6 socket.
            is_seen_to_take((Ipv6Addr::UNSPECIFIED, 0).into(), Ipv4Addr::LOCALHOST.into()).await;
        }
    }
}
