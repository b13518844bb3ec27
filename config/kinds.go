package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/taskerhq/tasker/template"
)

// Kind is what sort of value a setting has.
type Kind string

// The kinds.
const (
	Text     Kind = "text"
	URL      Kind = "URL" // secret: it may hold a password
	Secret   Kind = "secret"
	Whole    Kind = "whole number"
	Duration Kind = "time"
	List     Kind = "list"
	Choice   Kind = "choice"
)

// Allowed says what values it may have.
func (s *Setting) Allowed() string {
	switch s.Kind {
	case Whole:
		return fmt.Sprintf("a whole number from %s to %s", s.Least, s.Most)
	case Duration:
		return fmt.Sprintf("a time from %s to %s, such as %s", s.Least, s.Most, s.example())
	case Choice:
		return strings.Join(s.Choices[:len(s.Choices)-1], ", ") + " or " + s.Choices[len(s.Choices)-1]
	case List:
		return "a list"
	case URL:
		return "a URL such as " + s.Form
	case Secret:
		return "text in quotes"
	default:
		return "text"
	}
}

func (s *Setting) example() string {
	if s.Default == "0s" {
		return "30s"
	}
	return s.Default
}

// parse reads a value as it stands in the environment or after a flag, and in
// tasker.yaml once its kind is known to be right. fault says what is wrong, as
// the end of a sentence that begins with the setting's key.
func (s *Setting) parse(text string) (value any, fault string) {
	switch s.Kind {
	case Whole:
		n, err := strconv.Atoi(strings.ReplaceAll(text, "_", ""))
		if err != nil || n < whole(s.Least) || n > whole(s.Most) {
			return nil, fmt.Sprintf("must be %s, not %s", s.Allowed(), quoted(text))
		}
		return n, ""
	case Duration:
		if _, err := strconv.ParseFloat(text, 64); err == nil {
			return nil, fmt.Sprintf("must be %s; %s has no unit: write %ss or %sms", s.Allowed(), text, text, text)
		}
		d, err := time.ParseDuration(text)
		if err != nil || d < duration(s.Least) || d > duration(s.Most) {
			return nil, fmt.Sprintf("must be %s, not %s", s.Allowed(), quoted(text))
		}
		return d, ""
	case Choice:
		if !slices.Contains(s.Choices, text) {
			return nil, fmt.Sprintf("must be %s, not %s%s", s.Allowed(), quoted(text), template.DidYouMean(text, s.Choices))
		}
		return text, ""
	case List:
		var items []string
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				items = append(items, item)
			}
		}
		return items, s.itemsFault(items)
	case URL:
		pairs := s.Schemes[0] == "postgres://" && !strings.Contains(text, "://") && strings.Contains(text, "=") // libpq's other form
		if text != "" && !pairs && !slices.ContainsFunc(s.Schemes, func(scheme string) bool { return strings.HasPrefix(text, scheme) }) {
			return nil, "begins with none of " + strings.Join(s.Schemes, ", ") + "; it looks like " + s.Form // without its value, which may hold a password
		}
		return text, ""
	default:
		return text, ""
	}
}

func (s *Setting) itemsFault(items []string) string {
	for _, item := range items {
		if s.item == nil {
			break
		}
		if fault := s.item(item); fault != "" {
			return "has " + quoted(item) + ", which " + fault
		}
	}
	return ""
}

// whole and duration read the table's own values, which a test has checked.
func whole(text string) int {
	n, _ := strconv.Atoi(text)
	return n
}

func duration(text string) time.Duration {
	d, _ := time.ParseDuration(text)
	return d
}

// set stores a value that parse returned.
func (s *Setting) set(c *Config, value any) {
	switch p := s.field(c).(type) {
	case *string:
		*p = value.(string)
	case *int:
		*p = value.(int)
	case *time.Duration:
		*p = value.(time.Duration)
	case *[]string:
		*p = value.([]string)
	}
}

// text writes the value as parse reads it.
func (s *Setting) text(c *Config) string {
	switch p := s.field(c).(type) {
	case *int:
		return strconv.Itoa(*p)
	case *time.Duration:
		return short(*p)
	case *[]string:
		return strings.Join(*p, ",")
	case *string:
		return *p
	}
	return ""
}

// short writes 1h, where time.Duration writes 1h0m0s.
func short(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

func quoted(text string) string {
	const most = 60
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most]) + "…"
	}
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		return text
	}
	if _, err := time.ParseDuration(text); err == nil {
		return text
	}
	return strconv.Quote(text)
}
