package main

import (
	"bytes"
	"fmt"
	"html"
	"regexp"
	"strings"
)

// page is a document of headings, paragraphs, lists and tables, which can be written as Markdown and as HTML. In its
// texts, `code` and [links](#anchor) are markup as in Markdown; everything else is plain text.
type page struct {
	title  string
	blocks []block
}

// block is a heading with its level, a paragraph (text), a list or a table. Only the fields of one of these kinds are
// set.
type block struct {
	level   int
	heading string
	text    string
	list    []string
	table   [][]string // the first row is the header
}

func (p *page) heading(level int, text string) {
	p.blocks = append(p.blocks, block{level: level, heading: text})
}

func (p *page) text(format string, args ...any) {
	p.blocks = append(p.blocks, block{text: fmt.Sprintf(format, args...)})
}

func (p *page) list(items ...string) {
	if len(items) > 0 {
		p.blocks = append(p.blocks, block{list: items})
	}
}

func (p *page) table(head []string, rows [][]string) {
	if len(rows) > 0 {
		p.blocks = append(p.blocks, block{table: append([][]string{head}, rows...)})
	}
}

func (p *page) markdown() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s\n", p.title)
	for _, k := range p.blocks {
		b.WriteByte('\n')
		switch {
		case k.heading != "":
			fmt.Fprintf(&b, "%s %s\n", strings.Repeat("#", k.level), k.heading)
		case k.list != nil:
			for _, item := range k.list {
				fmt.Fprintf(&b, "- %s\n", item)
			}
		case k.table != nil:
			for i, row := range k.table {
				for _, cell := range row {
					b.WriteString("| " + strings.ReplaceAll(cell, "|", `\|`) + " ")
				}
				b.WriteString("|\n")
				if i == 0 {
					b.WriteString(strings.Repeat("|---", len(row)) + "|\n")
				}
			}
		default:
			b.WriteString(k.text + "\n")
		}
	}
	return b.Bytes()
}

const style = `body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}` +
	`table{border-collapse:collapse;margin:1rem 0}th,td{border:1px solid #8888;padding:.25rem .5rem;text-align:left;` +
	`vertical-align:top}code{font-size:.9em}h1,h2{border-bottom:1px solid #8888}`

func (p *page) html() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n"+
		"<meta name=\"viewport\" content=\"width=device-width\">\n<title>%s</title>\n<style>%s</style>\n<h1>%s</h1>\n",
		html.EscapeString(p.title), style, html.EscapeString(p.title))
	for _, k := range p.blocks {
		switch {
		case k.heading != "":
			fmt.Fprintf(&b, "<h%d id=\"%s\">%s</h%d>\n", k.level, anchor(k.heading), inline(k.heading), k.level)
		case k.list != nil:
			b.WriteString("<ul>\n")
			for _, item := range k.list {
				fmt.Fprintf(&b, "<li>%s</li>\n", inline(item))
			}
			b.WriteString("</ul>\n")
		case k.table != nil:
			b.WriteString("<table>\n")
			for i, row := range k.table {
				b.WriteString("<tr>")
				for _, cell := range row {
					tag := "td"
					if i == 0 {
						tag = "th"
					}
					fmt.Fprintf(&b, "<%s>%s</%s>", tag, inline(cell), tag)
				}
				b.WriteString("</tr>\n")
			}
			b.WriteString("</table>\n")
		default:
			fmt.Fprintf(&b, "<p>%s</p>\n", inline(k.text))
		}
	}
	return append(b.Bytes(), "</html>\n"...)
}

var (
	codeMark = regexp.MustCompile("`([^`]+)`")
	linkMark = regexp.MustCompile(`\[([^\]]+)\]\(([^)]+)\)`)
)

// inline returns a text as HTML. Links to other files of docs/ become plain text, because gateways do not serve these
// files.
func inline(text string) string {
	text = codeMark.ReplaceAllString(html.EscapeString(text), "<code>$1</code>")
	return linkMark.ReplaceAllStringFunc(text, func(link string) string {
		m := linkMark.FindStringSubmatch(link)
		if m[2][0] != '#' && m[2][0] != '/' {
			return m[1]
		}
		return fmt.Sprintf(`<a href="%s">%s</a>`, m[2], m[1])
	})
}

// anchor returns the name of the anchor of a heading, in the form that GitHub uses.
func anchor(heading string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(heading) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			b.WriteRune(r)
		}
	}
	return b.String()
}

// linkTo returns a link to a heading of the same page.
func linkTo(heading string) string { return "[" + heading + "](#" + anchor(heading) + ")" }

func code(text string) string { return "`" + text + "`" }
