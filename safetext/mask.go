package safetext

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Filtered stands for a secret.
const Filtered = "[FILTERED]"

// Mask returns text with its secrets replaced by Filtered: passwords in URLs, values that
// have a secret's name, Authorization headers, JSON Web Tokens, keys, and card numbers.
// It takes time linear in the text. SecretFilter of the gem does the same, and
// contract/secrets.json holds examples that both are tested with.
func Mask(text string) string {
	return maskCards(maskWords(maskURLs(maskKeys(text))))
}

// MaskTree masks a JSON value, as json.Unmarshal returns it: by the names of members and
// by what the strings look like. It returns a copy.
func MaskTree(tree any) any {
	switch v := tree.(type) {
	case map[string]any:
		masked := make(map[string]any, len(v))
		for name, member := range v {
			if secretName(name) {
				masked[name] = Filtered
			} else {
				masked[name] = MaskTree(member)
			}
		}
		return masked
	case []any:
		masked := make([]any, len(v))
		for i := range v {
			masked[i] = MaskTree(v[i])
		}
		return masked
	case string:
		return Mask(v)
	case json.Number:
		if maskCards(v.String()) != v.String() {
			return Filtered
		}
	}
	return tree
}

// MaskAddress masks a URL, or a connection string of Postgres, that is nothing else. One
// that can't be read is masked as a whole.
func MaskAddress(address string) string {
	if strings.Contains(address, "://") {
		if _, err := url.Parse(address); err != nil {
			return Filtered
		}
	}
	return Mask(address)
}

// MaskQuery is MaskAddress for the URL of a call: the values of all its query parameters
// are masked, their names stay.
func MaskQuery(address string) string {
	before, query, found := strings.Cut(MaskAddress(address), "?")
	if !found {
		return before
	}
	query, _, _ = strings.Cut(query, "#")
	parameters := strings.Split(query, "&")
	for i, p := range parameters {
		if name, _, has := strings.Cut(p, "="); has {
			parameters[i] = name + "=" + Filtered
		} else if p != "" {
			parameters[i] = Filtered
		}
	}
	return before + "?" + strings.Join(parameters, "&")
}

// CallError is what an HTTP client says went wrong, without the URL that it repeats and
// that may hold secrets. Others name the call. errors.As finds what err wraps.
func CallError(err error) error {
	if call, ok := errors.AsType[*url.Error](err); ok {
		return call.Err
	}
	return err
}

var privateKey = regexp.MustCompile(`(?s)(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-----).*?(-----END [A-Z0-9 ]{0,60}-----|\z)`)

func maskKeys(text string) string {
	if !strings.Contains(text, "PRIVATE KEY") {
		return text
	}
	return privateKey.ReplaceAllString(text, "${1}"+Filtered+"${2}")
}

// maskURLs masks the password of each URL. Passwords that are not percent-encoded may hold
// each of /, ?, # and @.
func maskURLs(text string) string {
	pieces := strings.Split(text, "://")
	for i := 1; i < len(pieces); i++ {
		web := webScheme.MatchString(pieces[i-1][max(0, len(pieces[i-1])-6):])
		pieces[i] = maskPassword(pieces[i], web)
	}
	return strings.Join(pieces, "://")
}

var webScheme = regexp.MustCompile(`(?i)(?:^|[^a-z])(?:https?|wss?)$`)

// maskPassword masks the password in what stands behind "://".
func maskPassword(rest string, web bool) string {
	token := rest[:indexAny(rest, " \t\r\n\f\v\"<>")]
	authority := token[:indexAny(token, "/?#")]
	var at int
	switch {
	case web && strings.Contains(authority, "@"):
		at = strings.LastIndex(authority, "@")
	default:
		if first := strings.Index(token, "@"); first >= 0 {
			if query := strings.Index(token[first:], "?"); query >= 0 && !web {
				token = token[:first+query]
			}
		}
		at = strings.LastIndex(token, "@")
	}
	colon := strings.Index(authority, ":")
	if colon < 0 || at < colon {
		return rest
	}
	if at >= len(authority) && (strings.HasPrefix(authority, "[") || web && digits(authority[colon+1:])) {
		return rest // a port and a path
	}
	if at == colon+1 || rest[colon+1:at] == "PASSWORD" { // none, or an example
		return rest
	}
	return rest[:colon+1] + Filtered + rest[at:]
}

// indexAny is strings.IndexAny with the length for "none".
func indexAny(text, characters string) int {
	if i := strings.IndexAny(text, characters); i >= 0 {
		return i
	}
	return len(text)
}

func digits(text string) bool { return strings.Trim(text, "0123456789") == "" }

// secretNames are parts of names whose values are masked; SecretFilter::DEFAULTS.
var secretNames = []string{
	"passw", "passphrase", "secret", "token", "authorization", "api_key", "access_key", "private_key", "credential", "cookie", "cvv", "cvc",
}

// innocentNames hold one of secretNames and are no secret's name.
var innocentNames = regexp.MustCompile(`secretar|tokeni[sz]|^_*(?:invalid|missing|expired|unexpected|unknown|unsupported)|` +
	`(?:error|exception|expired|invalid|missing|mismatch)$|(?:max|min|total|prompt|completion|input|output|cached)_?tokens?|tokens?_(?:count|limit|type|used|usage|budget)$|` +
	`_(?:env|file|path|dir|name|names|url|uri|endpoint|class|policy|length|expires|expires_at|expires_in|ttl|age|required|present|valid)$`)

// queryNames are names of parameters that hold a secret in the query of a URL.
var queryNames = []string{"key", "sig", "signature", "x_amz_signature", "x_goog_signature", "hmac", "pwd", "pass", "auth", "jwt"}

// innocentValues are no secrets, whatever name stands before them.
var innocentValues = []string{
	"a", "an", "and", "are", "as", "at", "can't", "cannot", "contains", "does", "doesn't", "empty", "expected", "expired", "false", "for", "from", "has", "in",
	"incorrect", "invalid", "is", "isn't", "missing", "must", "nil", "no", "none", "not", "null", "of", "on", "or", "required", "should", "the", "to", "true",
	"undefined", "unexpected", "unknown", "was", "with", "wrong",
}

const nameCharacters = 100

// normal is a name in small letters with underscores; of a long one its end.
func normal(name string) string {
	if runes := []rune(name); len(runes) > nameCharacters {
		name = string(runes[len(runes)-nameCharacters:])
	}
	return strings.ReplaceAll(strings.ToLower(name), "-", "_")
}

func secretName(name string) bool {
	name = normal(name)
	return slices.ContainsFunc(secretNames, func(part string) bool {
		return strings.Contains(name, part) || strings.Contains(name, strings.ReplaceAll(part, "_", ""))
	}) && !innocentNames.MatchString(name)
}

func inWord(r rune) bool {
	return r == '_' || r == '-' || unicode.IsLetter(r) || unicode.IsNumber(r)
}

// wordEnd is where the word ends that text begins with.
func wordEnd(text string) int {
	if i := strings.IndexFunc(text, func(r rune) bool { return !inWord(r) }); i >= 0 {
		return i
	}
	return len(text)
}

// maskWords looks at one word after the other, each once: a word may be a secret by its
// looks, or the name of the value behind it.
func maskWords(text string) string {
	var out strings.Builder
	before := rune(0) // the character before the word
	for text != "" {
		r, size := utf8.DecodeRuneInString(text)
		if !inWord(r) {
			out.WriteString(text[:size])
			before, text = r, text[size:]
			continue
		}
		end := wordEnd(text)
		word, rest := text[:end], text[end:]
		masked, taken := maskWord(word, rest, before == '?' || before == '&')
		out.WriteString(masked)
		text = rest[taken:]
		before = 0
	}
	return out.String()
}

var (
	knownKeys  = regexp.MustCompile(`^(?:(?:AKIA|ASIA)[A-Z0-9]{16}|[sr]k_(?:live|test)_[A-Za-z0-9]{10,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|xox[abeoprs]-[A-Za-z0-9-]{10,})$`)
	tokenRest  = regexp.MustCompile(`^\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`)
	credential = regexp.MustCompile(`^([ \t]+)([A-Za-z0-9._~+/=-]+)`)
	spaces     = regexp.MustCompile(`^[ \t]+`)
	separator  = regexp.MustCompile(`^(?:\\*["'])?\]?[ \t]*(?:=>|:=|=|:)[ \t]*`)
)

// maskWord returns what to write for a word, and how much of the rest that takes up.
func maskWord(word, rest string, query bool) (masked string, taken int) {
	if strings.HasPrefix(word, "eyJ") && len(word) > 8 {
		if end := tokenRest.FindString(rest); end != "" {
			return Filtered, len(strings.TrimRight(end, "."))
		}
	}
	if knownKeys.MatchString(word) {
		return Filtered, 0
	}
	if scheme := strings.ToLower(word); scheme == "bearer" || scheme == "basic" {
		if m := credential.FindStringSubmatch(rest); m != nil && isCredential(scheme, m[2]) {
			return word + m[1] + Filtered, len(m[0])
		}
	}
	secret := secretName(word)
	if secret && strings.HasPrefix(word, "--") {
		if gap := spaces.FindString(rest); gap != "" && !strings.HasPrefix(rest[len(gap):], "-") {
			if value, n := maskValue(rest[len(gap):], false); n > 0 {
				return word + gap + value, len(gap) + n
			}
		}
	}
	if !secret && !(query && strings.HasPrefix(rest, "=") && slices.Contains(queryNames, normal(word))) {
		return word, 0
	}
	sep := separator.FindString(rest)
	if sep == "" {
		return word, 0
	}
	value := rest[len(sep):]
	colon := strings.HasSuffix(strings.TrimRight(sep, " \t"), ":")
	if colon && strings.HasPrefix(value, ":") {
		return word, 0 // Token::Store
	}
	name := normal(word)
	header := strings.HasSuffix(name, "authorization") || strings.HasSuffix(name, "cookie")
	shown, n := "", 0
	switch {
	case strings.HasPrefix(value, "["+filteredStart), strings.HasPrefix(value, filteredStart):
	case strings.HasPrefix(value, "[") && (header || listOfStrings.MatchString(value)):
		// Up to the bracket, or in a text that was cut to the end of the line.
		end := indexAny(value, "]\r\n")
		shown, n = "["+Filtered, end
	case colon && header && !strings.HasPrefix(strings.TrimLeft(value, `\`), `"`) && !strings.HasPrefix(strings.TrimLeft(value, `\`), "'"):
		shown, n = maskHeader(value)
	default:
		shown, n = maskValue(value, query)
	}
	if n == 0 {
		return word, 0
	}
	return word + sep + shown, len(sep) + n
}

var (
	listOfStrings = regexp.MustCompile(`^\[[ \t]*\\*["']`)
	schemed       = regexp.MustCompile(`(?i)^((?:basic|bearer|token|apikey|key|negotiate)[ \t]+)([^\s"'<>;]+)`)
	bareInQuery   = regexp.MustCompile(`^[^&#\s"'<>;]+`)
	nextMember    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,40}[=:]`)
	opening       = regexp.MustCompile(`^\\*["']`)
)

// isCredential reports whether a text behind "Bearer" or "Basic" is more than a word.
func isCredential(scheme, text string) bool {
	if scheme == "basic" {
		plain, err := base64.StdEncoding.DecodeString(text)
		return err == nil && strings.Contains(string(plain), ":")
	}
	return len(text) >= 8 && (strings.ContainsAny(text, "0123456789=") || strings.ContainsAny(text[1:], "ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
}

// maskHeader masks the value of an Authorization or Cookie header to the end of the line;
// of one with a well-known scheme, the credentials.
func maskHeader(value string) (shown string, taken int) {
	if m := schemed.FindStringSubmatch(value); m != nil {
		secret := strings.TrimRight(m[2], ")]},.:")
		if secret == "" || strings.HasPrefix(m[2], Filtered) {
			return "", 0
		}
		return m[1] + Filtered, len(m[1]) + len(secret)
	}
	first := value[:bareEnd(value)]
	if first == "" || innocent(first) {
		return "", 0
	}
	return Filtered, indexAny(value, "\r\n")
}

// bareEnd is where a value without quotes ends.
func bareEnd(text string) int {
	for i := range len(text) {
		switch text[i] {
		case ' ', '\t', '\r', '\n', '\f', '\v', '"', '\'', '&', ';', '<', '>':
			return i
		case ',':
			if nextMember.MatchString(text[i+1 : min(len(text), i+50)]) {
				return i
			}
		}
	}
	return len(text)
}

// maskValue masks the value that text begins with: in quotes, or up to what ends it.
func maskValue(text string, query bool) (shown string, taken int) {
	if quote := opening.FindString(text); quote != "" {
		inner := text[len(quote):]
		end := closing(inner, quote)
		if end == 0 || inner[:end] == Filtered {
			return "", 0
		}
		return quote + Filtered, len(quote) + end
	}
	if query {
		if strings.HasPrefix(text, filteredStart) {
			return "", 0
		}
		value := bareInQuery.FindString(text)
		if value == "" || innocent(value) {
			return "", 0
		}
		return Filtered, len(value)
	}
	if strings.HasPrefix(text, "=") || strings.HasPrefix(text, "{") || strings.HasPrefix(text, filteredStart) {
		return "", 0
	}
	value := strings.TrimRight(text[:bareEnd(text)], ")]},.:")
	if value == "" || innocent(value) || len(value) < 4 && !strings.ContainsFunc(value, inWord) {
		return "", 0
	}
	return Filtered, len(value)
}

// filteredStart is Filtered without its end, which may be taken for what follows a value.
const filteredStart = "[FILTERED"

func innocent(value string) bool {
	if strings.HasPrefix(value, filteredStart) {
		return true
	}
	const longest = 20
	return len(value) < longest && slices.Contains(innocentValues, strings.ToLower(strings.TrimRight(value, ")]},.:")))
}

// closing is where the closing quote stands. Without one, the value goes to the end of the
// line.
func closing(text, quote string) int {
	if len(quote) > 1 {
		if i := strings.Index(text, quote); i >= 0 {
			return i
		}
		return indexAny(text, "\r\n")
	}
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case quote[0]:
			return i
		}
	}
	return indexAny(text, "\r\n")
}

var (
	manyDigits = regexp.MustCompile(`[0-9](?:[ -]?[0-9]){12}`)
	digitRun   = regexp.MustCompile(`[0-9](?:[ -]?[0-9])*`)
)

// maskCards masks numbers that a payment card can have: 13 to 19 digits, as one or in the
// groups in which cards show them.
func maskCards(text string) string {
	if !manyDigits.MatchString(text) {
		return text
	}
	var out strings.Builder
	last := 0
	for _, at := range digitRun.FindAllStringIndex(text, -1) {
		out.WriteString(text[last:at[0]])
		out.WriteString(maskCardsInRun(text[at[0]:at[1]], partOfMore(text[:at[0]], text[at[1]:])))
		last = at[1]
	}
	out.WriteString(text[last:])
	return out.String()
}

// edges says which ends of a run of digits belong to a longer word or a fraction.
type edges struct{ start, end bool }

func partOfMore(before, behind string) (e edges) {
	r, size := utf8.DecodeLastRuneInString(before)
	e.start = r != utf8.RuneError && (r == '_' || unicode.IsLetter(r)) || r == '.' && endsInDigit(before[:len(before)-size])
	r, size = utf8.DecodeRuneInString(behind)
	e.end = r != utf8.RuneError && (r == '_' || unicode.IsLetter(r)) || r == '.' && len(behind) > size && digits(behind[size:size+1])
	return e
}

func endsInDigit(text string) bool { return text != "" && digits(text[len(text)-1:]) }

var cardShapes = [][]int{{4, 4, 4, 4, 3}, {4, 4, 4, 4, 2}, {4, 4, 4, 4, 1}, {4, 4, 4, 4}, {4, 6, 5}, {4, 6, 4}}

func maskCardsInRun(run string, e edges) string {
	if len(run) < 13 {
		return run
	}
	var groups []string
	var separators []byte // behind each group but the last
	for rest := run; ; {
		i := strings.IndexAny(rest, " -")
		if i < 0 {
			groups = append(groups, rest)
			break
		}
		groups, separators = append(groups, rest[:i]), append(separators, rest[i])
		rest = rest[i+1:]
	}
	var out strings.Builder
	for i := 0; i < len(groups); {
		n := cardGroups(groups[i:])
		if n > 0 && (i == 0 && e.start || i+n == len(groups) && e.end) {
			n = 0
		}
		if n > 0 {
			out.WriteString(Filtered)
		} else {
			n = 1
			out.WriteString(groups[i])
		}
		i += n
		if i < len(groups) {
			out.WriteByte(separators[i-1])
		}
	}
	return out.String()
}

// cardGroups is how many of the first groups are a card's number; 0: they are none.
func cardGroups(groups []string) int {
	if isCard(groups[0]) {
		return 1
	}
	for _, shape := range cardShapes {
		if len(shape) <= len(groups) && slices.EqualFunc(shape, groups[:len(shape)], func(n int, group string) bool { return len(group) == n }) &&
			isCard(strings.Join(groups[:len(shape)], "")) {
			return len(shape)
		}
	}
	return 0
}

var cardNumbers = regexp.MustCompile(`^(?:4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}|5[0678][0-9]{11,17}|6[0-9]{12,18}|3[47][0-9]{13}|3[05689][0-9]{12,17}|2[2-7][0-9]{14})$`)

// isCard reports whether the digits begin as a card's do and pass the check of Luhn.
func isCard(number string) bool {
	if !cardNumbers.MatchString(number) {
		return false
	}
	sum := 0
	for i := range number {
		d := int(number[len(number)-1-i] - '0')
		if i%2 == 1 {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum += d
	}
	return sum%10 == 0
}
