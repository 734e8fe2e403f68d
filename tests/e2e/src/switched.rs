//! A disk that is well or ill, as it is told: QEMU's storage daemon behind a file, with its layers that fail and that
//! throttle, switched over while it is used.

use crate::qmp::Qmp;
use crate::served::{Served, image_node};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// How a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does what it is asked for.
    Well,
    /// Every write ends with EIO.
    WritesFail,
    /// Every flush ends with EIO.
    FlushesFail,
    /// Every write ends with ENOSPC.
    Full,
    /// It does a hundred operations per second.
    Slow,
    /// It answers nothing; what it is asked for meanwhile it does when it is well again.
    Hangs,
}

impl Health {
    /// Name of the layer that makes it so.
    fn layer(self) -> &'static str {
        match self {
            Health::Well | Health::Hangs => "image",
            Health::WritesFail => "writes-fail",
            Health::FlushesFail => "flushes-fail",
            Health::Full => "full",
            Health::Slow => "slow",
        }
    }
}

/// The disk; like [`Served`], it must outlive the daemon that uses it.
#[derive(Debug)]
pub struct SwitchedDisk {
    image: PathBuf,
    file: PathBuf,
    server: Option<(Served, Qmp)>,
    health: Health,
}

impl SwitchedDisk {
    /// Serves `image` as `file`, which is there already; it is well.
    pub fn start(image: &Path, file: &Path) -> SwitchedDisk {
        let server = Some(serve(image, file));
        SwitchedDisk { image: image.to_path_buf(), file: file.to_path_buf(), server, health: Health::Well }
    }

    /// From now on. A disk that hangs becomes well before anything else. One whose flushes fail cannot be mended under
    /// who uses it: another one with the same bytes takes its place.
    pub fn switch(&mut self, health: Health) {
        if self.health == Health::FlushesFail {
            self.server = None;
            self.server = Some(serve(&self.image, &self.file));
        }
        let (served, qmp) = self.server.as_mut().expect("a server");
        if self.health == Health::Hangs {
            served.server().resume();
        }
        qmp.call("blockdev-reopen", &json!({ "options": [top(health)] }));
        if health == Health::Hangs {
            served.server().pause();
        }
        self.health = health;
    }
}

fn serve(image: &Path, file: &Path) -> (Served, Qmp) {
    let layer = |health: Health, driver: &str, options: Value| {
        let mut node = json!({ "driver": driver, "node-name": health.layer(), "discard": "unmap" });
        let options = options.as_object().expect("an object").clone();
        node.as_object_mut().expect("an object").extend(options);
        node
    };
    let fails = |health, kind: &str, errno: i32| {
        let error = json!({ "event": "none", "iotype": kind, "errno": errno, "once": false });
        layer(health, "blkdebug", json!({ "image": "image", "inject-error": [error] }))
    };
    let slow = layer(Health::Slow, "throttle", json!({ "throttle-group": "slowly", "file": "image" }));
    let limits = json!({ "qom-type": "throttle-group", "id": "slowly", "limits": { "iops-total": 100 } });
    let layers: [Value; 6] = [
        image_node("image", image),
        fails(Health::WritesFail, "write", 5),
        fails(Health::FlushesFail, "flush", 5),
        fails(Health::Full, "write", 28),
        slow,
        top(Health::Well),
    ];
    let control = image.with_extension("qmp");
    let mut arguments = vec!["--object".to_string(), limits.to_string()];
    arguments.extend(layers.into_iter().flat_map(|layer| ["--blockdev".to_string(), layer.to_string()]));
    arguments.extend([
        "--chardev".to_string(),
        format!("socket,id=qmp,path={},server=on,wait=off", control.display()),
        "--monitor".to_string(),
        "chardev=qmp".to_string(),
    ]);
    (Served::with(arguments, "top", image, file), Qmp::open(&control))
}

fn top(health: Health) -> Value {
    json!({ "driver": "raw", "node-name": "top", "file": health.layer(), "discard": "unmap" })
}
