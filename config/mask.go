package config

import (
	"net/url"
	"regexp"
	"strings"
)

// hidden stands for what must not be seen. It is what url.URL.Redacted writes.
const hidden = "xxxxx"

var passwordForm = regexp.MustCompile(`(?i)\b((?:ssl)?password)\s*=\s*('(?:\\.|[^'\\])*'|[^\s&]+)`)

// mask makes a URL fit for eyes: passwords are hidden wherever the forms that
// Postgres and Redis take can hold one. What can't be read is hidden as a whole.
func mask(text string) string {
	if text == "" {
		return ""
	}
	if strings.Contains(text, "://") {
		u, err := url.Parse(text)
		if err != nil {
			return hidden
		}
		text = u.Redacted()
	}
	return passwordForm.ReplaceAllString(text, "${1}="+hidden)
}
