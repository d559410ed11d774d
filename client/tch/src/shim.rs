//! The C++ shim (`shim/package.h`) as safe types. The only module with `unsafe`: each block says what it relies on.
//!
//! Deliberately absent: any idea of what inputs should look like. A package believes what it is given and reads memory
//! accordingly, so [`Loaded::run`] is only called with inputs that `inputs.rs` has checked.
#![allow(unsafe_code, reason = "calls into C++")]

use std::{
    borrow::Borrow,
    ffi::{CStr, CString, c_char, c_void},
    marker::PhantomData,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    ptr::{self, NonNull},
    slice,
    sync::{Mutex, PoisonError},
};

use smallvec::{SmallVec, smallvec};
use tch::Tensor;

mod c {
    use std::ffi::{c_char, c_void};

    #[repr(C)]
    pub(super) struct Package {
        _opaque: [u8; 0],
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    pub(super) struct Described {
        pub(super) sizes: *const i64,
        pub(super) strides: *const i64,
        pub(super) n_dimensions: i64,
        pub(super) dtype: i32,
        pub(super) device_type: i32,
        pub(super) device_index: i32,
        pub(super) is_not_plain: i32,
        pub(super) is_misaligned: i32,
    }

    unsafe extern "C" {
        pub(super) fn pw_describe(tensors: *const *const c_void, n: usize, described: *mut Described) -> *mut c_char;
        pub(super) fn pw_package_load(
            path: *const c_char,
            n_runners: usize,
            device_index: i32,
            package: *mut *mut Package,
        ) -> *mut c_char;
        pub(super) fn pw_package_run(
            package: *mut Package,
            inputs: *const *const c_void,
            n_inputs: usize,
            outputs: *mut *mut c_void,
            n_outputs: usize,
        ) -> *mut c_char;
        pub(super) fn pw_package_free(package: *mut Package);
        pub(super) fn pw_load_library(path: *const c_char) -> *mut c_char;
        pub(super) fn pw_has_operator(name: *const c_char, is_there: *mut bool) -> *mut c_char;
        pub(super) fn pw_load_cuda(n_devices: *mut i32) -> *mut c_char;
        pub(super) fn pw_synchronise(device_index: i32) -> *mut c_char;
        pub(super) fn pw_library_folder() -> *mut c_char;
        pub(super) fn pw_header_version() -> *const c_char;
        pub(super) fn pw_error_free(message: *mut c_char);
    }
}

/// The text of an exception that C++ threw.
pub(crate) type Message = String;

/// Takes a message that the shim returned; null: none.
fn taken(message: *mut c_char) -> Option<Message> {
    let message = NonNull::new(message)?;
    // SAFETY: the shim returns null or a NUL-terminated string of its own, which we give back once.
    unsafe {
        let text = CStr::from_ptr(message.as_ptr()).to_string_lossy().into_owned();
        c::pw_error_free(message.as_ptr());
        Some(text)
    }
}

fn checked(message: *mut c_char) -> Result<(), Message> {
    taken(message).map_or(Ok(()), Err)
}

fn c_path(path: &Path) -> Result<CString, Message> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| format!("{path:?} has a NUL in it"))
}

/// As many tensors as most pieces have: so many are described, and handed over, without an allocation.
const N_INLINE: usize = 16;

/// What the tensors of a call look like.
pub(crate) type Descriptions<'a> = SmallVec<[Described<'a>; N_INLINE]>;

/// Tensors that somebody holds for as long as this lives.
pub(crate) struct Tensors<'a> {
    pointers: SmallVec<[*const c_void; N_INLINE]>,
    borrowed: PhantomData<&'a Tensor>,
}

impl<'a> Tensors<'a> {
    pub(crate) fn of<T: Borrow<Tensor>>(tensors: &'a [T]) -> Self {
        let pointers = tensors.iter().map(|tensor| tensor.borrow().as_ptr().cast()).collect();
        Self { pointers, borrowed: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.pointers.len()
    }

    /// What each looks like.
    pub(crate) fn describe(&self) -> Result<Descriptions<'_>, Message> {
        let mut described: SmallVec<[c::Described; N_INLINE]> = SmallVec::with_capacity(self.len());
        // SAFETY: the pointers are of tensors that are borrowed, there is room for as many descriptions, and they are all
        // written where there is no message.
        unsafe {
            checked(c::pw_describe(self.pointers.as_ptr(), self.len(), described.as_mut_ptr()))?;
            described.set_len(self.len());
        }
        Ok(described.into_iter().map(|raw| Described { raw, borrowed: PhantomData }).collect())
    }

    /// Those at `positions`, in that order, and `more` behind them.
    pub(crate) fn chosen(&self, positions: &[usize], more: &'a Owned) -> Tensors<'a> {
        let chosen = positions.iter().map(|&at| self.pointers[at]);
        let pointers = chosen.chain(more.0.iter().map(|tensor| tensor.as_ptr().cast())).collect();
        Tensors { pointers, borrowed: PhantomData }
    }
}

/// Tensors that are only ever read, and so may be read by several threads. ([`Tensor`] is not `Sync`, since it has methods that change it.)
pub(crate) struct Owned(Vec<Tensor>);

// SAFETY: nothing but the pointers can be had from it, for C++ to make further references from, and those are counted atomically.
unsafe impl Sync for Owned {}

impl Owned {
    pub(crate) fn new(tensors: Vec<Tensor>) -> Self {
        Self(tensors)
    }
}

/// What a tensor looks like.
#[derive(Clone, Copy)]
pub(crate) struct Described<'a> {
    raw: c::Described,
    borrowed: PhantomData<&'a Tensor>,
}

impl<'a> Described<'a> {
    /// Empty where it is not plain.
    pub(crate) fn sizes(&self) -> &'a [i64] {
        self.numbers(self.raw.sizes)
    }

    /// As many as sizes.
    pub(crate) fn strides(&self) -> &'a [i64] {
        self.numbers(self.raw.strides)
    }

    fn numbers(&self, first: *const i64) -> &'a [i64] {
        match usize::try_from(self.raw.n_dimensions) {
            // SAFETY: the tensor has so many dimensions, and is borrowed, so that nobody resizes it.
            Ok(n) if n > 0 => unsafe { slice::from_raw_parts(first, n) },
            _ => &[],
        }
    }

    /// The number of c10's `ScalarType`; -1: there is no tensor.
    pub(crate) fn dtype(&self) -> i32 {
        self.raw.dtype
    }

    /// The number of c10's `DeviceType`, and the index (-1: none).
    pub(crate) fn device(&self) -> (i32, i32) {
        (self.raw.device_type, self.raw.device_index)
    }

    /// Whether its memory holds its values as they are: it is not sparse, quantised, or lazily conjugated or negated.
    pub(crate) fn is_plain(&self) -> bool {
        self.raw.is_not_plain == 0
    }

    /// Whether its first element lies at a multiple of 16 bytes.
    pub(crate) fn is_aligned(&self) -> bool {
        self.raw.is_misaligned == 0
    }
}

/// A package in memory.
pub(crate) struct Loaded {
    package: NonNull<c::Package>,
    /// With one runner the package does no locking.
    one_at_a_time: Option<Mutex<()>>,
}

// SAFETY: the loader is bound to no thread, and calls at the same time are what its runners are for; with one runner there is a lock.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Loaded {
    /// `device_index`: of the GPU; `None`: a CPU.
    pub(crate) fn load(path: &Path, n_runners: usize, device_index: Option<i32>) -> Result<Self, Message> {
        let path = c_path(path)?;
        let mut package = ptr::null_mut();
        // SAFETY: the path is NUL-terminated; the package is written where there is no message.
        let message = unsafe {
            c::pw_package_load(path.as_ptr(), n_runners.max(1), device_index.unwrap_or(-1), &raw mut package)
        };
        checked(message)?;
        let package = NonNull::new(package).ok_or("the loader gave no package")?;
        Ok(Self { package, one_at_a_time: (n_runners <= 1).then(Mutex::default) })
    }

    /// One call, with inputs that are known to be what the package was compiled for.
    pub(crate) fn run(&self, inputs: &Tensors<'_>, n_outputs: usize) -> Result<Vec<Tensor>, Message> {
        let mut outputs: SmallVec<[*mut c_void; N_INLINE]> = smallvec![ptr::null_mut(); n_outputs];
        {
            let _one = self.one_at_a_time.as_ref().map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner));
            // SAFETY: the package lives as long as we do; the inputs are borrowed; there is room for the outputs.
            let message = unsafe {
                c::pw_package_run(
                    self.package.as_ptr(),
                    inputs.pointers.as_ptr(),
                    inputs.len(),
                    outputs.as_mut_ptr(),
                    n_outputs,
                )
            };
            checked(message)?;
        }
        // SAFETY: each is a new at::Tensor that is ours, as tch's own are.
        Ok(outputs.into_iter().map(|output| unsafe { Tensor::from_ptr(output.cast()) }).collect())
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: nobody has the package any more, and it is freed once.
        unsafe { c::pw_package_free(self.package.as_ptr()) }
    }
}

/// Loads a shared library that registers operators.
pub(crate) fn load_library(path: &Path) -> Result<(), Message> {
    let path = c_path(path)?;
    // SAFETY: the path is NUL-terminated. What the library does when it is loaded is its own and its caller's business, as in
    // `torch.ops.load_library`.
    checked(unsafe { c::pw_load_library(path.as_ptr()) })
}

/// Whether an operator is registered: "ns::op" or "ns::op.overload".
pub(crate) fn has_operator(name: &str) -> Result<bool, Message> {
    let name = CString::new(name).map_err(|_| format!("{name:?} has a NUL in it"))?;
    let mut is_there = false;
    // SAFETY: the name is NUL-terminated; the answer is written where there is no message.
    checked(unsafe { c::pw_has_operator(name.as_ptr(), &raw mut is_there) })?;
    Ok(is_there)
}

/// Has libtorch's CUDA in the process; the number of GPUs.
pub(crate) fn load_cuda() -> Result<i32, Message> {
    let mut n_devices = 0;
    // SAFETY: the number is written before anything else happens.
    checked(unsafe { c::pw_load_cuda(&raw mut n_devices) })?;
    Ok(n_devices)
}

/// Waits for what was launched on a GPU's current stream.
pub(crate) fn synchronise(device_index: i32) -> Result<(), Message> {
    // SAFETY: takes a number.
    checked(unsafe { c::pw_synchronise(device_index) })
}

/// Where the process's libtorch was loaded from; `None`: unknown.
pub(crate) fn library_folder() -> Option<PathBuf> {
    // SAFETY: takes nothing, and returns a string that is ours.
    taken(unsafe { c::pw_library_folder() }).map(PathBuf::from)
}

/// The version of libtorch that this was compiled against, "2.11.0".
pub(crate) fn header_version() -> &'static str {
    // SAFETY: a string literal of the shim.
    unsafe { CStr::from_ptr(c::pw_header_version()) }.to_str().unwrap_or_default()
}
