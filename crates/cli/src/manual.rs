//! The hidden words for packagers: manual pages and shell completions, from the same definition as the help.

use std::fs;
use std::io;
use std::path::Path;

use clap_complete::Shell;
use clap_mangen::Man;

use crate::args;
use crate::console::Console;
use crate::failure::Failure;

/// Writes one page per word: sterna.1, sterna-migrate.1, sterna-vm-start.1 and so on.
///
/// # Errors
/// The directory cannot be made or written to.
pub(crate) fn write_pages(directory: &Path) -> Result<(), Failure> {
    let mut command = args::command().disable_help_subcommand(true);
    command.build();
    let write = || fs::create_dir_all(directory).and_then(|()| write_page(&command, directory));
    write().map_err(|error| Failure::File { path: directory.to_owned(), error })
}

/// Prints a shell's completions.
pub(crate) fn print_completions(shell: Shell, console: &mut Console) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "sterna", &mut script);
    console.print(&String::from_utf8_lossy(&script));
}

/// Writes the page of a word, and those of the words below it.
fn write_page(command: &clap::Command, directory: &Path) -> io::Result<()> {
    let words: Vec<_> = command.get_subcommands().filter(|word| !word.is_hide_set()).collect();
    let man = Man::new(command.clone()).manual("Sterna");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if !words.is_empty() {
        man.render_subcommands_section(&mut page)?;
    }
    let notes = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    page.extend_from_slice(note_sections(&notes).as_bytes());
    fs::write(directory.join(man.get_filename()), page)?;
    words.iter().try_for_each(|word| write_page(word, directory))
}

/// The text after a help as sections: a line in capitals with a colon begins one, other lines stay as they are.
fn note_sections(notes: &str) -> String {
    let mut out = String::new();
    for (number, paragraph) in notes.split("\n\n").filter(|text| !text.is_empty()).enumerate() {
        let (head, rest) = paragraph.split_once(":\n").unwrap_or(("", paragraph));
        let is_head = |char: char| char.is_ascii_uppercase() || char == ' ';
        let (head, body) = match head {
            "" => ("", paragraph),
            head if head.chars().all(is_head) => (head, rest),
            _ => ("", paragraph),
        };
        match head {
            "" if number == 0 => out.push_str(".SH NOTES\n"),
            "" => out.push_str(".PP\n"),
            head => out.push_str(&format!(".SH \"{head}\"\n")),
        }
        out.push_str(".nf\n");
        body.lines().for_each(|line| out.push_str(&escaped(line)));
        out.push_str(".fi\n");
    }
    out
}

/// A line that the formatter prints as it is.
fn escaped(line: &str) -> String {
    let text = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    format!("\\&{text}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_become_sections_whose_lines_stay() {
        assert_eq!(
            note_sections("Ctrl-\\ ends\nit.\n\nEXIT CODES:\n  0  done\n\n.last: one"),
            ".SH NOTES\n.nf\n\\&Ctrl\\-\\e ends\n\\&it.\n.fi\n\
             .SH \"EXIT CODES\"\n.nf\n\\&  0  done\n.fi\n\
             .PP\n.nf\n\\&.last: one\n.fi\n"
        );
    }
}
