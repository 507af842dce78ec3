//! stub
/// stub
pub async fn serve(
    _: crate::engine::Engine,
    _: &crate::config::ServerConfig,
    _: tokio::net::TcpListener,
    _: tokio_util::sync::CancellationToken,
) -> std::io::Result<()> {
    Ok(())
}
