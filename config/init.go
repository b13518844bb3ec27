package config

import (
	"fmt"
	"strings"
)

// Sample writes a tasker.yaml that sets nothing: every setting is there as a
// comment, at its default and with the reason. Without the # before its name a
// line counts.
func Sample() string {
	var b strings.Builder
	b.WriteString(`# Settings of tasker. All are shown at their defaults; remove the # before a name
# to change it. The environment goes over this file, and flags over both.
# tasker config validate checks it, tasker config show says what counts; SIGHUP
# makes a worker read it again, where a setting says so.
`)
	for _, g := range Groups {
		fmt.Fprintf(&b, "\n# %s.\n%s:", g.About, g.Name)
		for i := range Settings {
			s := &Settings[i]
			if s.Group() != g.Name {
				continue
			}
			b.WriteString("\n")
			about := s.About + ": " + s.Allowed() + "."
			if s.Kind == Text || s.Kind == List {
				about = s.About + "."
			}
			comment(&b, about)
			comment(&b, "Why: "+s.Why)
			from := "Or " + strings.Join(s.Variables(), ", ")
			if s.Flag != "" {
				from += ", --" + s.Flag
			}
			if s.Live {
				from += ". SIGHUP changes it"
			}
			comment(&b, from+".")
			fmt.Fprintf(&b, "  #%s: %s\n", s.Name(), s.yaml())
		}
	}
	return b.String()
}

// yaml is the default as the file has it.
func (s *Setting) yaml() string {
	switch {
	case s.Kind == List:
		return "[" + s.Default + "]"
	case s.Default == "":
		return `""`
	}
	return s.Default
}

// comment writes text in lines of a width that editors show.
func comment(b *strings.Builder, text string) {
	line := "  #"
	for word := range strings.FieldsSeq(strings.ReplaceAll(text, "`", "")) {
		if len(line)+1+len(word) > 88 && line != "  #" {
			b.WriteString(line + "\n")
			line = "  #"
		}
		line += " " + word
	}
	b.WriteString(line + "\n")
}
