//! Quotas as text in configuration.

use tower_throttle::Quota;

/// The input is the text of a quota.
///
/// - What is read is a quota in its bounds, is printed as a text that is read as an equal quota, and
///   does not depend on spaces around it or on upper case.
/// - An error names a part of the text.
pub fn quota_text(data: &[u8]) {
    let text = &*String::from_utf8_lossy(&data[..data.len().min(512)]);
    match text.parse::<Quota>() {
        Ok(quota) => {
            let (capacity, rate) = (quota.capacity(), quota.rate());
            assert!(
                (1.0..=9_007_199_254_740_992.0).contains(&capacity),
                "{quota}"
            );
            assert!(rate > 0.0 && rate.is_finite(), "{quota}");
            let printed = quota.to_string();
            assert_eq!(
                printed.parse(),
                Ok(quota),
                "{text:?} is printed as {printed:?}"
            );
            assert_eq!(format!(" \t{text} \n").parse(), Ok(quota), "{text:?}");
            assert_eq!(text.to_ascii_uppercase().parse(), Ok(quota), "{text:?}");
        }
        Err(error) => {
            assert_eq!(text.get(error.span()), Some(error.part()), "{text:?}");
            assert!(
                error
                    .to_string()
                    .ends_with(|end: char| end.is_ascii_alphanumeric())
            );
        }
    }
}
