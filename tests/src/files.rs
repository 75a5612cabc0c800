use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Result;

/// Writes files below `dir`, making the directories they need.
pub fn write_tree(dir: &Path, files: &[(&str, &str)]) -> Result<()> {
    for (path, content) in files {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, content)?;
    }
    Ok(())
}

/// Writes an executable file.
pub fn write_script(path: &Path, content: &str) -> Result<()> {
    std::fs::write(path, content)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}
