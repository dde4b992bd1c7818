//! Reading a GGUF file: metadata, and tensors as they are quantised.
//!
//! Decision: candle reads the container and knows the quantised formats; this file adds only what
//! it leaves to the caller, namely typed errors and taking quantised blocks apart (`ggml.rs`). Types
//! that are rare, and have no form of their own here, become f32.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};

use super::error::LmError;
use super::weights::Rows;
use super::{folder, ggml};

/// An open GGUF file, its metadata read, its tensors still on disk.
pub(crate) struct Gguf {
    path: PathBuf,
    file: BufReader<File>,
    content: Content,
}

impl Gguf {
    /// Opens a file and reads its metadata.
    pub(crate) fn open(path: &Path) -> Result<Self, LmError> {
        let fail = |reason: String| LmError::File { path: path.to_owned(), reason };
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(|e| fail(e.to_string()))?);
        let content = Content::read(&mut file).map_err(|e| fail(e.to_string()))?;
        Ok(Self { path: path.to_owned(), file, content })
    }

    /// A metadata value, if the key is present.
    pub(crate) fn find(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    fn value(&self, key: &str) -> Result<&Value, LmError> {
        self.find(key).ok_or_else(|| LmError::Malformed(format!("no metadata key {key:?}")))
    }

    /// A string.
    pub(crate) fn string(&self, key: &str) -> Result<&str, LmError> {
        match self.value(key)? {
            Value::String(text) => Ok(text),
            other => Err(wrong(key, "a string", other)),
        }
    }

    /// A whole number, whatever its width in the file.
    pub(crate) fn integer(&self, key: &str) -> Result<usize, LmError> {
        integer(key, self.value(key)?)
    }

    /// A number with a fraction.
    pub(crate) fn float(&self, key: &str) -> Result<f32, LmError> {
        let value = self.value(key)?;
        value.to_f32().map_err(|_| wrong(key, "an f32", value))
    }

    /// A list of strings.
    pub(crate) fn strings(&self, key: &str) -> Result<Vec<&str>, LmError> {
        let mut strings = Vec::new();
        for value in self.array(key)? {
            let Value::String(text) = value else { return Err(wrong(key, "a list of strings", value)) };
            strings.push(text.as_str());
        }
        Ok(strings)
    }

    /// A list of whole numbers.
    pub(crate) fn integers(&self, key: &str) -> Result<Vec<usize>, LmError> {
        self.array(key)?.iter().map(|value| integer(key, value)).collect()
    }

    fn array(&self, key: &str) -> Result<&[Value], LmError> {
        match self.value(key)? {
            Value::Array(values) => Ok(values),
            other => Err(wrong(key, "a list", other)),
        }
    }

    /// Whether the file holds a tensor.
    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// A tensor, row major, after checking its shape (outermost first).
    pub(super) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Rows, LmError> {
        let info = self.content.tensor_infos.get(name);
        let found = info.ok_or_else(|| LmError::Malformed(format!("no tensor {name:?}")))?.shape.dims();
        if found != shape {
            return Err(LmError::Malformed(format!("tensor {name:?} is {found:?}, expected {shape:?}")));
        }
        let mut read = || {
            let quantised = self.content.tensor(&mut self.file, name, &Device::Cpu)?;
            rows(&quantised)
        };
        read().map_err(|e| LmError::File { path: self.path.clone(), reason: format!("tensor {name:?}: {e}") })
    }
}

fn wrong(key: &str, expected: &str, found: &Value) -> LmError {
    LmError::Malformed(format!("metadata key {key:?} is {:?}, expected {expected}", found.value_type()))
}

fn integer(key: &str, value: &Value) -> Result<usize, LmError> {
    let number = match *value {
        Value::U8(v) => v as i128,
        Value::I8(v) => v as i128,
        Value::U16(v) => v as i128,
        Value::I16(v) => v as i128,
        Value::U32(v) => v as i128,
        Value::I32(v) => v as i128,
        Value::U64(v) => v as i128,
        Value::I64(v) => v as i128,
        _ => return Err(wrong(key, "a whole number", value)),
    };
    usize::try_from(number).map_err(|_| wrong(key, "a number from 0", value))
}

/// The weights of a tensor, as narrow as they are in the file where the kernel reads them so.
fn rows(tensor: &QTensor) -> candle_core::Result<Rows> {
    let bytes = tensor.data()?;
    Ok(match tensor.dtype() {
        GgmlDType::F16 => Rows::F16(folder::numbers(&bytes, half::f16::from_le_bytes)),
        GgmlDType::BF16 => Rows::Bf16(folder::numbers(&bytes, half::bf16::from_le_bytes)),
        dtype => match ggml::coded(dtype, &bytes) {
            Some(coded) => Rows::Coded(coded),
            None => Rows::F32(tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_gguf_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"not a model").unwrap();
        assert!(matches!(Gguf::open(file.path()), Err(LmError::File { .. })));
        assert!(matches!(Gguf::open(Path::new("/nowhere")), Err(LmError::File { .. })));
    }
}
