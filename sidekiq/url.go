package sidekiq

import "net/url"

// hidePassword makes a URL fit for a message.
func hidePassword(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(not a URL)"
	}
	return u.Redacted()
}
