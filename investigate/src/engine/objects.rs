//! A ledger's store as the engine wants it: reads of ranges, and nothing else.

use std::{
    collections::HashMap,
    fmt,
    ops::Range,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use vestigo_ledger::Store;

/// The store, and how long the files are that the plan names.
#[derive(Debug)]
pub(super) struct Objects {
    store: Arc<dyn Store>,
    sizes: RwLock<HashMap<String, u64>>,
}

impl Objects {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, sizes: RwLock::default() }
    }

    /// Notes what manifests say, so that the store need not be asked.
    pub(super) fn note<'a>(&self, files: impl Iterator<Item = (&'a str, u64)>) {
        let mut sizes = self.sizes.write().unwrap_or_else(PoisonError::into_inner);
        sizes.extend(files.map(|(path, bytes)| (path.to_owned(), bytes)));
    }

    fn size(&self, path: &Path) -> Result<u64> {
        let known = self.sizes.read().unwrap_or_else(PoisonError::into_inner).get(path.as_ref()).copied();
        // Whatever no plan named is no file of a segment.
        known.ok_or_else(|| Error::NotFound { path: path.to_string(), source: "it is no file of a segment".into() })
    }

    async fn range(&self, path: &Path, range: Range<u64>) -> Result<Bytes> {
        let (store, name) = (Arc::clone(&self.store), path.to_string());
        let read = tokio::task::spawn_blocking(move || store.read_range(&name, range)).await;
        read.map_err(|source| Error::Generic { store: "ledger", source: Box::new(source) })?
            .map_err(|error| Error::Generic { store: "ledger", source: Box::new(error) })
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.store.name())
    }
}

fn refused<T>(operation: &str) -> Result<T> {
    Err(Error::NotImplemented {
        operation: operation.to_owned(),
        implementer: "a ledger, which is only read".to_owned(),
    })
}

#[async_trait]
impl ObjectStore for Objects {
    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        refused("writing")
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        refused("writing")
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let size = self.size(path)?;
        let meta =
            ObjectMeta { location: path.clone(), last_modified: Default::default(), size, e_tag: None, version: None };
        let range = match options.range {
            None => 0..size,
            Some(GetRange::Bounded(range)) => range.start.min(size)..range.end.min(size),
            Some(GetRange::Offset(start)) => start.min(size)..size,
            Some(GetRange::Suffix(length)) => size.saturating_sub(length)..size,
        };
        let bytes = if options.head { Bytes::new() } else { self.range(path, range.clone()).await? };
        let payload = GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes: Attributes::new() })
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        stream::once(async { refused("deleting") }).boxed()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::once(async { refused("listing") }).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        refused("listing")
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        refused("copying")
    }
}
