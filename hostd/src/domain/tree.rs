//! A small, bounded picture of an XML document.
//!
//! Domain XML is written by libvirt, but parts of it (names, metadata, paths) come from tenants through the cloud manager.
//! So the reader refuses document types and entities of its own, and stops at limits that no real domain comes near.

use quick_xml::{
    XmlVersion,
    events::{BytesStart, Event},
    name::ResolveResult,
    reader::NsReader,
};

/// Largest document in bytes. libvirt's own limit on the wire is the same.
pub const MAX_BYTES: usize = 4 << 20;
/// Deepest nesting: a chain of 100 backing files takes one level each.
const MAX_DEPTH: usize = 256;
/// Most elements and attributes together.
const MAX_NODES: usize = 100_000;

/// Why a text is not a usable document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// Larger than 4 MiB.
    #[error("the domain XML is {0} bytes long; at most {MAX_BYTES} are read")]
    TooLarge(usize),
    /// Too deep or too many elements.
    #[error("the domain XML has {0}")]
    Limit(&'static str),
    /// Not well-formed.
    #[error("the domain XML is malformed: {0}")]
    Malformed(String),
    /// Well-formed, but something that every domain has is absent.
    #[error("the domain XML has no {0}")]
    Absent(&'static str),
    /// Well-formed, but a value is not what it must be.
    #[error("the domain XML has an unusable {what}: {why}")]
    Value {
        /// Which.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

fn malformed(error: impl std::fmt::Display) -> XmlError {
    XmlError::Malformed(error.to_string())
}

/// One element.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Element {
    /// Name without prefix.
    pub name: String,
    /// Namespace; empty when there is none.
    pub namespace: String,
    /// Attributes by local name.
    attributes: Vec<(String, String)>,
    /// Character data directly inside, trimmed.
    text: String,
    /// Elements directly inside.
    pub children: Vec<Element>,
}

impl Element {
    /// The value of the attribute.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The text inside, if any.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        Some(self.text.as_str()).filter(|text| !text.is_empty())
    }

    /// The first child of this name.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All children of this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> + 'a {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The attribute of the first child of this name.
    #[must_use]
    pub fn child_attribute(&self, child: &str, attribute: &str) -> Option<&str> {
        self.child(child)?.attribute(attribute)
    }

    /// The text of the first child of this name.
    #[must_use]
    pub fn child_text(&self, child: &str) -> Option<&str> {
        self.child(child)?.text()
    }
}

/// Reads the document's root element.
pub fn parse(xml: &str) -> Result<Element, XmlError> {
    if xml.len() > MAX_BYTES {
        return Err(XmlError::TooLarge(xml.len()));
    }
    Builder::default().run(xml)
}

#[derive(Default)]
struct Builder {
    open: Vec<Element>,
    root: Option<Element>,
    nodes: usize,
}

impl Builder {
    fn run(mut self, xml: &str) -> Result<Element, XmlError> {
        let mut reader = NsReader::from_str(xml);
        loop {
            let (resolved, event) = reader.read_resolved_event().map_err(malformed)?;
            let namespace = namespace_of(&resolved);
            match event {
                Event::Start(start) => self.enter(&start, namespace)?,
                Event::Empty(start) => {
                    self.enter(&start, namespace)?;
                    self.leave();
                }
                Event::End(_) => self.leave(),
                Event::Text(text) => self.say(&text.xml10_content()),
                Event::CData(text) => self.say(&text.xml10_content()),
                Event::GeneralRef(reference) => self.refer(&reference)?,
                Event::DocType(_) => return Err(XmlError::Malformed("a document type is not accepted".into())),
                Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
                Event::Eof => break,
            }
        }
        if !self.open.is_empty() {
            return Err(XmlError::Malformed("it ends in the middle of an element".into()));
        }
        self.root.ok_or(XmlError::Absent("root element"))
    }

    fn enter(&mut self, start: &BytesStart<'_>, namespace: String) -> Result<(), XmlError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(XmlError::Limit("elements nested too deep"));
        }
        if self.root.is_some() && self.open.is_empty() {
            return Err(XmlError::Malformed("it has a second root element".into()));
        }
        let mut element = Element { name: start.local_name().as_ref().to_owned(), namespace, ..Element::default() };
        for attribute in start.attributes() {
            let attribute = attribute.map_err(malformed)?;
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(malformed)?;
            element.attributes.push((attribute.key.local_name().as_ref().to_owned(), value.into_owned()));
        }
        self.nodes += 1 + element.attributes.len();
        if self.nodes > MAX_NODES {
            return Err(XmlError::Limit("too many elements"));
        }
        self.open.push(element);
        Ok(())
    }

    fn leave(&mut self) {
        if let Some(mut element) = self.open.pop() {
            element.text = element.text.trim().to_owned();
            match self.open.last_mut() {
                Some(parent) => parent.children.push(element),
                None => self.root = Some(element),
            }
        }
    }

    fn say(&mut self, text: &str) {
        if let Some(element) = self.open.last_mut() {
            element.text.push_str(text);
        }
    }

    fn refer(&mut self, reference: &quick_xml::events::BytesRef<'_>) -> Result<(), XmlError> {
        if let Some(character) = reference.resolve_char_ref().map_err(malformed)? {
            self.say(character.encode_utf8(&mut [0; 4]));
            return Ok(());
        }
        let name = reference.xml10_content();
        let text = quick_xml::escape::resolve_predefined_entity(&name)
            .ok_or_else(|| XmlError::Malformed(format!("entity {name:?} is not known")))?;
        self.say(text);
        Ok(())
    }
}

fn namespace_of(resolved: &ResolveResult<'_>) -> String {
    match resolved {
        ResolveResult::Bound(namespace) => namespace.as_ref().to_owned(),
        ResolveResult::Unbound | ResolveResult::Unknown(_) => String::new(),
    }
}
