//! Converts a message and its files into content blocks that the agent accepts.
//!
//! Always: content that the agent does not declare support for is refused; nothing of the message is dropped.

use agent_client_protocol::v1::schema::{
    AudioContent, BlobResourceContents, ContentBlock, EmbeddedResource, EmbeddedResourceResource, ImageContent,
    PromptCapabilities, ResourceLink, TextContent,
};

use crate::driver::relay::RelayedTurn;
use crate::message::Attachment;

/// The content blocks of a prompt, or why there can be none.
pub(super) fn blocks(turn: &RelayedTurn, takes: &PromptCapabilities) -> Result<Vec<ContentBlock>, String> {
    // Models refuse an empty text; the message has files then.
    let text = Some(turn.message.clone()).filter(|text| !text.trim().is_empty());
    let mut blocks: Vec<_> = text.map(|text| ContentBlock::Text(TextContent::new(text))).into_iter().collect();
    for file in &turn.attachments {
        blocks.push(block(file, takes)?);
    }
    Ok(blocks)
}

fn block(file: &Attachment, takes: &PromptCapabilities) -> Result<ContentBlock, String> {
    let name = || file.filename.clone().unwrap_or_else(|| "file".to_owned());
    let Some((data, is_base64)) = data_of(&file.url) else {
        // Every agent accepts a link.
        let link = ResourceLink::new(name(), file.url.clone()).mime_type(file.media_type.clone());
        return Ok(ContentBlock::ResourceLink(link));
    };
    let media_type = file.media_type.as_str();
    let refused = |what: &str| Err(format!("The agent takes no {what} ({}): leave {} out.", media_type, name()));
    if !is_base64 {
        return Err(format!("The file {} is no base64 in a data: URL.", name()));
    }
    if media_type.starts_with("image/") {
        let image = ContentBlock::Image(ImageContent::new(data, media_type));
        return if takes.image { Ok(image) } else { refused("images") };
    }
    if media_type.starts_with("audio/") {
        let audio = ContentBlock::Audio(AudioContent::new(data, media_type));
        return if takes.audio { Ok(audio) } else { refused("audio") };
    }
    if !takes.embedded_context {
        return refused("files");
    }
    let blob = BlobResourceContents::new(data, format!("attachment:///{}", name())).mime_type(media_type.to_owned());
    Ok(ContentBlock::Resource(EmbeddedResource::new(EmbeddedResourceResource::BlobResourceContents(blob))))
}

/// The content of a `data:` URL, and whether it is base64.
fn data_of(url: &str) -> Option<(&str, bool)> {
    let (kind, data) = url.strip_prefix("data:")?.split_once(',')?;
    Some((data, kind.ends_with(";base64")))
}
