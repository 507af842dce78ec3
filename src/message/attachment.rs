//! A file of a message, and what its agent is told that it is.
//!
//! Always: one rule for what clients send and what the command line attaches. Labels are those of browsers and of tables of
//! file names, to which TypeScript is video and JSON no text: what is text is text for the agent.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A file of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What it is, such as `image/png`; of text `text/plain`, whatever its sender calls it, or `text/…` as its sender does.
    pub media_type: String,
    /// Its name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// A `data:` URL that holds it, or where it is.
    pub url: String,
}

/// What a file is of which nothing is known.
const UNKNOWN: &str = "application/octet-stream";

impl Attachment {
    /// What a part of type `file` holds.
    pub(super) fn of(part: &Value) -> Result<Self, &'static str> {
        let text = |key: &str| part.get(key).and_then(Value::as_str);
        // Browsers leave it empty for a file whose name tells them nothing.
        let label = text("mediaType").filter(|text| text.is_empty() || is_media_type(text));
        let label = label.ok_or("needs a \"mediaType\" such as \"image/png\"")?.to_ascii_lowercase();
        let filename = match part.get("filename") {
            None | Some(Value::Null) => None,
            Some(name) => Some(name.as_str().filter(|name| is_file_name(name)).ok_or(
                "has a \"filename\" that is none: use 1 to 255 characters, none of them / or a control character",
            )?),
        };
        let url = text("url").ok_or("needs a \"url\": a data: URL that holds it, or where it is (https:)")?;
        let filename = filename.map(str::to_owned);
        match url.strip_prefix("data:") {
            Some(held) => Self::held(held, &label, filename),
            None if is_link(url) => {
                let media_type = label_of(&label, "", filename.as_deref()).to_owned();
                Ok(Self { media_type, filename, url: url.to_owned() })
            }
            None => Err("has a \"url\" that is neither a data: URL nor begins with https://"),
        }
    }

    /// A file as it is on a disk.
    pub fn from_bytes(filename: Option<String>, bytes: &[u8]) -> Self {
        let media_type = media_type_of(label_of("", "", filename.as_deref()), bytes);
        let url = format!("data:{media_type};base64,{}", STANDARD.encode(bytes));
        Self { media_type: media_type.to_owned(), filename, url }
    }

    /// What stands behind `data:`: a type with parameters, and base64 with its padding.
    fn held(held: &str, label: &str, filename: Option<String>) -> Result<Self, &'static str> {
        let (kind, data) = held.split_once(";base64,").ok_or("has a data: URL without \";base64,\"")?;
        let kind = kind.split(';').next().unwrap_or_default();
        if !kind.is_empty() && !label.is_empty() && !kind.eq_ignore_ascii_case(label) {
            return Err("is of another type in its \"url\" than in its \"mediaType\"");
        }
        let bytes = STANDARD.decode(data).map_err(|_| "has a data: URL that holds no base64, or not all of it")?;
        if bytes.is_empty() {
            return Err("is empty");
        }
        let label = label_of(label, kind, filename.as_deref()).to_ascii_lowercase();
        let media_type = media_type_of(&label, &bytes).to_owned();
        let url = format!("data:{media_type};base64,{data}");
        Ok(Self { media_type, filename, url })
    }

    /// Whether it is only known where it is.
    pub fn is_link(&self) -> bool {
        !self.url.starts_with("data:")
    }

    /// Its name, or else what it is.
    pub fn label(&self) -> &str {
        self.filename.as_deref().unwrap_or(&self.media_type)
    }

    pub(super) fn to_part(&self) -> Value {
        let mut part = serde_json::json!({"type": "file", "mediaType": self.media_type, "url": self.url});
        if let Some(name) = &self.filename {
            part["filename"] = name.as_str().into();
        }
        part
    }
}

/// What a file is called: by its sender, else by its name, else in its URL.
fn label_of<'a>(label: &'a str, kind: &'a str, filename: Option<&str>) -> &'a str {
    if !label.is_empty() {
        return label;
    }
    let guess = filename.and_then(|name| mime_guess::from_path(name).first_raw());
    guess.unwrap_or(if is_media_type(kind) { kind } else { UNKNOWN })
}

/// What a file is for its agent. An image or a PDF may happen to hold nothing but text, and is no text for that; SVG is.
fn media_type_of<'a>(label: &'a str, bytes: &[u8]) -> &'a str {
    let is_picture = label.starts_with("image/") && label != "image/svg+xml";
    let is_text = || std::str::from_utf8(bytes).is_ok_and(|text| !text.contains('\0'));
    if label.starts_with("text/") || is_picture || bytes.starts_with(b"%PDF-") || !is_text() {
        label
    } else {
        "text/plain"
    }
}

/// `type/subtype`, without parameters.
fn is_media_type(text: &str) -> bool {
    const MAX_CHARS: usize = 127;
    let legal = |c: char| c.is_ascii_alphanumeric() || "!#$&-^_.+".contains(c);
    let word = |word: &str| !word.is_empty() && word.chars().all(legal);
    text.len() <= MAX_CHARS && text.split_once('/').is_some_and(|(kind, subtype)| word(kind) && word(subtype))
}

fn is_file_name(text: &str) -> bool {
    const MAX_CHARS: usize = 255;
    let is_illegal = |c: char| c == '/' || c.is_control();
    !text.is_empty() && text.chars().count() <= MAX_CHARS && !text.contains(is_illegal)
}

fn is_link(url: &str) -> bool {
    const MAX_BYTES: usize = 8192;
    let behind = url.strip_prefix("https://").unwrap_or_default();
    !behind.is_empty()
        && !behind.starts_with('/')
        && url.len() <= MAX_BYTES
        && url.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_is_text_whatever_it_is_labelled() {
        let code = STANDARD.encode("let x: number = 1; // ü");
        for (name, label, kind) in [
            ("a.ts", "video/mp2t", "video/mp2t"),
            ("a.json", "application/json", "application/json"),
            ("a.sh", "application/x-sh", "application/x-sh"),
            ("a.yml", "application/x-yaml", "application/x-yaml"),
            ("a.py", "", "application/octet-stream"),
            ("Makefile", "", ""),
            ("a.svg", "image/svg+xml", "image/svg+xml"),
            ("a.bin", "application/octet-stream", "application/octet-stream"),
        ] {
            let url = format!("data:{kind};base64,{code}");
            let file = Attachment::of(&json!({"mediaType": label, "filename": name, "url": url})).unwrap();
            assert!(file.media_type.starts_with("text/"), "{name} is {}", file.media_type);
            assert_eq!(file.url, format!("data:{};base64,{code}", file.media_type));
            let attached = Attachment::from_bytes(Some(name.into()), b"let x: number = 1; // \xc3\xbc");
            assert!(attached.media_type.starts_with("text/"), "{name} is {}", attached.media_type);
        }
    }

    #[test]
    fn what_is_no_text_keeps_its_label() {
        for (name, label, bytes, media_type) in [
            ("a.png", "", &b"\x89PNG\0"[..], "image/png"),
            ("a.md", "text/markdown", b"# a", "text/markdown"),
            ("a.txt", "text/plain", b"\xfc in Latin-1", "text/plain"),
            ("a.pdf", "application/pdf", b"%PDF-1.4 all of it text", "application/pdf"),
            ("a.gif", "image/gif", b"GIF89a", "image/gif"),
            ("a.ts", "video/mp2t", b"G\0\x11", "video/mp2t"),
            ("a", "", b"\xff\xfe", "application/octet-stream"),
            ("a.zip", "", b"PK\x03\x04\0", "application/zip"),
        ] {
            let url = format!("data:{label};base64,{}", STANDARD.encode(bytes));
            let file = Attachment::of(&json!({"mediaType": label, "filename": name, "url": url})).unwrap();
            assert_eq!(file.media_type, media_type, "{name}");
            let link = json!({"mediaType": label, "filename": name, "url": "https://example.com/a"});
            assert_eq!(Attachment::of(&link).unwrap().media_type, media_type, "{name}");
        }
    }
}
