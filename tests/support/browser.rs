//! A headless Chromium, driven by ChromeDriver (W3C WebDriver).

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::wait::eventually;
use super::{missing_program, requirement};

/// Chromium takes seconds to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether pages can be looked at here.
///
/// # Panics
/// When they cannot and the environment variable CI is set.
pub fn ready() -> bool {
    requirement(
        "what a browser shows",
        missing_program(&["chromium", "chromedriver"]),
    )
}

/// One window. It ends with this.
pub struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    profile: tempfile::TempDir,
}

impl Browser {
    /// A window of this size in CSS pixels, in the dark or in the light.
    #[track_caller]
    pub fn open(width: u32, height: u32, dark: bool) -> Browser {
        let profile = tempfile::tempdir().expect("a folder for the browser");
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let mut printed = BufReader::new(driver.stdout.take().expect("its output is piped"));
        let mut line = String::new();
        let port = loop {
            line.clear();
            let n = printed.read_line(&mut line).expect("chromedriver prints");
            assert!(n > 0, "chromedriver ended");
            let after = line.split("successfully on port ").nth(1);
            let digits = after.and_then(|rest| rest.trim().trim_end_matches('.').parse().ok());
            if let Some(port) = digits {
                break port;
            }
        };
        // Read on, so that it never waits for room in the pipe.
        std::thread::spawn(move || std::io::copy(&mut printed, &mut std::io::sink()));
        let mut browser = Browser {
            driver,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            session: String::new(),
            profile,
        };
        let folder = browser.profile.path().join("profile");
        let mut args = vec![
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-quic".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            format!("--user-data-dir={}", folder.display()),
            format!("--window-size={width},{height}"),
        ];
        if dark {
            args.push("--force-dark-mode".to_owned());
            args.push("--blink-settings=preferredColorScheme=0".to_owned());
        }
        let mut options = json!({"args": args});
        // Chromium's windows are at least 500 pixels wide: narrower ones are a phone's.
        if width < 500 {
            let metrics = json!({"width": width, "height": height, "pixelRatio": 2.0});
            options["mobileEmulation"] = json!({"deviceMetrics": metrics});
        }
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let answer = browser.call("POST", "", &wanted).expect("a session begins");
        let id = answer["sessionId"].as_str().unwrap_or_default();
        assert!(!id.is_empty(), "no session: {answer}");
        browser.session = format!("/{id}");
        browser
    }

    /// Goes to a page, and waits until it is loaded.
    #[track_caller]
    pub fn go(&self, url: &str) {
        self.call("POST", "/url", &json!({"url": url}))
            .expect("the page loads");
    }

    /// What a script returns.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.call(
            "POST",
            "/execute/sync",
            &json!({"script": script, "args": []}),
        )
        .expect("the script runs")
    }

    /// All text that the page shows.
    #[track_caller]
    pub fn text(&self) -> String {
        let text = self.run("return document.body.innerText");
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the page shows this text.
    #[track_caller]
    pub fn until_shown(&self, wanted: &str) {
        eventually(PATIENCE, &format!("the page shows {wanted:?}"), || {
            let text = self.text();
            if text.contains(wanted) {
                Ok(())
            } else {
                Err(text)
            }
        });
    }

    /// What the page wrote to the console, refused loads and violations of its policy among it.
    #[track_caller]
    pub fn complaints(&self) -> Vec<String> {
        let log = self
            .call("POST", "/se/log", &json!({"type": "browser"}))
            .expect("the log is read");
        let all = log.as_array().cloned().unwrap_or_default();
        all.iter()
            .map(|entry| entry["message"].to_string())
            .collect()
    }

    /// Writes a picture of the window, for people to look at.
    #[track_caller]
    pub fn screenshot(&self, to: &Path) {
        let answer = self.call("GET", "/screenshot", &Value::Null);
        let encoded = answer.expect("a picture is taken");
        let decoded = base64(encoded.as_str().unwrap_or_default());
        std::fs::write(to, decoded).expect("the picture is written");
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let text = |e: std::io::Error| e.to_string();
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut stream = TcpStream::connect(self.address).map_err(text)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
        let head = format!(
            "{method} /session{}{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: \
             application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.session,
            body.len()
        );
        stream.write_all(head.as_bytes()).map_err(text)?;
        // It keeps the connection, whatever it is asked.
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).map_err(text)? == 0 {
                return Err("no answer".to_owned());
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(number) = line.strip_prefix("content-length:") {
                length = number.trim().parse().map_err(|_| line.clone())?;
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).map_err(text)?;
        let json: Value = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
        match json["value"]["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", json["value"]["message"])),
            None => Ok(json["value"].clone()),
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.call("DELETE", "", &Value::Null);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        // A session that did not begin in time has a browser all the same.
        let profile = self.profile.path().display().to_string();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let own = std::fs::read_to_string(entry.path().join("cmdline"))
                .is_ok_and(|line| line.contains(&profile));
            if let (true, Ok(pid)) = (own, entry.file_name().to_string_lossy().parse()) {
                // SAFETY: kill takes no pointers; the process has this browser's own folder in its command line.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }
}

/// RFC 4648, section 4.
fn base64(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits: Vec<u8> = text.bytes().filter_map(value).collect();
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let all = group.iter().fold(0u32, |sum, d| sum << 6 | u32::from(*d));
        let all = all << (6 * (4 - group.len()));
        bytes.extend(&all.to_be_bytes()[1..group.len()]);
    }
    bytes
}
