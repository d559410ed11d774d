//! `/`: the live page, one file with everything in it.
//!
//! Its policy lets run the one script and the one style that are in the file, by their digests, and lets them talk to this port alone.

use std::sync::LazyLock;

use axum::{
    http::{HeaderName, header},
    response::Html,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

const PAGE: &str = include_str!("page.html");

static POLICY: LazyLock<String> = LazyLock::new(|| {
    let [style, script] = ["style", "script"].map(|tag| STANDARD.encode(Sha256::digest(inside(tag))));
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
});

pub(crate) async fn page() -> ([(HeaderName, &'static str); 1], Html<&'static str>) {
    ([(header::CONTENT_SECURITY_POLICY, &POLICY)], Html(PAGE))
}

/// What is between a tag and its end, as the browser digests it.
fn inside(tag: &str) -> &'static str {
    let found = PAGE.split_once(&format!("<{tag}>")).and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")));
    found.map(|(text, _)| text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_one_file_with_one_script_and_one_style() {
        for tag in ["style", "script"] {
            assert_eq!((PAGE.matches(&format!("<{tag}")).count(), PAGE.matches(&format!("</{tag}>")).count()), (1, 1));
            assert!(inside(tag).len() > 1000);
        }
        // A carriage return would be another text to the browser.
        assert!(!PAGE.contains('\r'));
        for outside in ["http:", "https:", "src=", "@import", "url(", "innerHTML", "style=", "onclick"] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
    }
}
