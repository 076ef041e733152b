package caddymodule

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/text/language"

	"github.com/caddy-usher/usher/reserver"
)

// The states of the waiting page that are no errors.
const (
	stateStarting = "starting"
	stateQueue    = "queue"
)

// words are the texts of the waiting page in one language.
type translation struct {
	language string

	// status has the few words for each state.
	status map[string]string

	// usually and tryAgain take a duration in words.
	usually, tryAgain string

	unknown, overdue, busy, wakesNot, back string

	// second, seconds, minute and minutes are durations; two take a number.
	second, seconds, minute, minutes string

	// failed says that one attempt to start it has failed, faileds how many;
	// each takes the reason, too.
	failed, faileds string

	// before says that one is before the visitor, befores how many.
	before, befores string

	hint, progress string

	task taskTranslation
}

var english = translation{
	language: "en",
	status: map[string]string{
		stateStarting:           "Starting",
		stateQueue:              "Waiting for a free place",
		codeStartFailed:         "It could not be started",
		codeSuspended:           "Switched off for now",
		codeAsleep:              "Asleep",
		codeQueueFull:           "Too many are waiting",
		codePlatformUnavailable: "Not reachable at the moment",
		codeWaitTimeout:         "It took too long",
		codeShuttingDown:        "Restarting",
	},
	usually: "This usually takes about %s.", tryAgain: "It is tried again in %s.",
	unknown: "This takes a moment.", overdue: "This takes longer than usual.", busy: "Everything is in use right now.",
	wakesNot: "Opening this address does not wake it.", back: "It is back in a moment.",
	second: "a second", seconds: "%d seconds", minute: "a minute", minutes: "%d minutes",
	before: "One other is before you.", befores: "%d others are before you.",
	failed: "1 attempt failed: %s", faileds: "%d attempts failed: %s",
	hint: "What you asked for opens here by itself.", progress: "Progress",
	task: taskEnglish,
}

var otherLanguages = []translation{
	{
		language: "de",
		status: map[string]string{
			stateStarting:           "Wird gestartet",
			stateQueue:              "Warten auf einen freien Platz",
			codeStartFailed:         "Der Start ist fehlgeschlagen",
			codeSuspended:           "Vorübergehend abgeschaltet",
			codeAsleep:              "Im Ruhezustand",
			codeQueueFull:           "Zu viele warten",
			codePlatformUnavailable: "Zurzeit nicht erreichbar",
			codeWaitTimeout:         "Es hat zu lange gedauert",
			codeShuttingDown:        "Wird neu gestartet",
		},
		usually: "Das dauert gewöhnlich etwa %s.", tryAgain: "Der nächste Versuch folgt in %s.",
		unknown: "Das dauert einen Moment.", overdue: "Das dauert länger als gewöhnlich.", busy: "Im Moment ist alles belegt.",
		wakesNot: "Diese Adresse weckt den Dienst nicht.", back: "Gleich geht es weiter.",
		second: "einer Sekunde", seconds: "%d Sekunden", minute: "einer Minute", minutes: "%d Minuten",
		before: "Eine Anfrage ist vor Ihnen.", befores: "%d Anfragen sind vor Ihnen.",
		failed: "1 Versuch ist fehlgeschlagen: %s", faileds: "%d Versuche sind fehlgeschlagen: %s",
		hint: "Die gewünschte Seite öffnet sich hier von selbst.", progress: "Fortschritt",
		task: taskGerman,
	},
	{
		language: "fr",
		status: map[string]string{
			stateStarting:           "Démarrage en cours",
			stateQueue:              "En attente d’une place libre",
			codeStartFailed:         "Le démarrage a échoué",
			codeSuspended:           "Désactivé pour le moment",
			codeAsleep:              "En veille",
			codeQueueFull:           "Trop de demandes en attente",
			codePlatformUnavailable: "Injoignable pour le moment",
			codeWaitTimeout:         "L’attente a été trop longue",
			codeShuttingDown:        "Redémarrage en cours",
		},
		usually: "Cela prend d’habitude environ %s.", tryAgain: "Prochaine tentative dans %s.",
		unknown: "Cela prend un instant.", overdue: "Cela prend plus de temps que d’habitude.", busy: "Tout est occupé pour l’instant.",
		wakesNot: "Cette adresse ne réveille pas le service.", back: "De retour dans un instant.",
		second: "une seconde", seconds: "%d secondes", minute: "une minute", minutes: "%d minutes",
		before: "Une demande est avant vous.", befores: "%d demandes sont avant vous.",
		failed: "1 tentative a échoué : %s", faileds: "%d tentatives ont échoué : %s",
		hint: "La page demandée s’ouvrira ici d’elle-même.", progress: "Progression",
		task: taskFrench,
	},
	{
		language: "es",
		status: map[string]string{
			stateStarting:           "Iniciando",
			stateQueue:              "Esperando un lugar libre",
			codeStartFailed:         "No se pudo iniciar",
			codeSuspended:           "Desactivado por ahora",
			codeAsleep:              "En reposo",
			codeQueueFull:           "Hay demasiadas solicitudes en espera",
			codePlatformUnavailable: "No disponible en este momento",
			codeWaitTimeout:         "Tardó demasiado",
			codeShuttingDown:        "Reiniciando",
		},
		usually: "Suele tardar unos %s.", tryAgain: "Se intentará de nuevo en %s.",
		unknown: "Tardará un momento.", overdue: "Está tardando más de lo habitual.", busy: "Ahora mismo todo está ocupado.",
		wakesNot: "Esta dirección no activa el servicio.", back: "Volverá en un momento.",
		second: "1 segundo", seconds: "%d segundos", minute: "1 minuto", minutes: "%d minutos",
		before: "Hay una solicitud antes que la suya.", befores: "Hay %d solicitudes antes que la suya.",
		failed: "1 intento ha fallado: %s", faileds: "%d intentos han fallado: %s",
		hint: "La página solicitada se abrirá aquí por sí sola.", progress: "Progreso",
		task: taskSpanish,
	},
	{
		language: "zh",
		status: map[string]string{
			stateStarting:           "正在启动",
			stateQueue:              "正在等待空位",
			codeStartFailed:         "启动失败",
			codeSuspended:           "暂时停用",
			codeAsleep:              "休眠中",
			codeQueueFull:           "等待的请求过多",
			codePlatformUnavailable: "暂时无法连接",
			codeWaitTimeout:         "等待时间过长",
			codeShuttingDown:        "正在重启",
		},
		usually: "通常需要大约%s。", tryAgain: "%s后将重试。",
		unknown: "请稍候片刻。", overdue: "这次比平时要久一些。", busy: "目前没有空位。",
		wakesNot: "访问此地址不会唤醒服务。", back: "马上回来。",
		second: "1 秒", seconds: "%d 秒", minute: "1 分钟", minutes: "%d 分钟",
		before: "前面还有 1 个请求。", befores: "前面还有 %d 个请求。",
		failed: "已有 1 次尝试失败：%s", faileds: "已有 %d 次尝试失败：%s",
		hint: "准备就绪后将自动打开您请求的页面。", progress: "进度",
		task: taskChinese,
	},
}

// languageTags are the languages of the words; the first is for all others.
var (
	translations = append([]translation{english}, otherLanguages...)
	languages    = language.NewMatcher(languageTags())
)

func languageTags() []language.Tag {
	var tags []language.Tag
	for _, w := range translations {
		tags = append(tags, language.MustParse(w.language))
	}
	return tags
}

// wordsFor returns the words for an Accept-Language header.
func translationFor(accept string) *translation {
	// One that is wrong wants nothing that we could know of.
	tags, _, _ := language.ParseAcceptLanguage(accept)
	_, k, _ := languages.Match(tags...)
	return &translations[k]
}

// duration says d in words, whole seconds or minutes.
func (w *translation) duration(d time.Duration) string {
	switch s := int((d + time.Second/2) / time.Second); {
	case s <= 1:
		return w.second
	case s < 90:
		return fmt.Sprintf(w.seconds, s)
	default:
		if m := (s + 30) / 60; m > 1 {
			return fmt.Sprintf(w.minutes, m)
		}
		return w.minute
	}
}

// attempts says why the latest of so many attempts failed that failed in a row.
func (w *translation) attempts(failed int, reason string) string {
	if failed == 1 {
		return fmt.Sprintf(w.failed, reason)
	}
	return fmt.Sprintf(w.faileds, failed, reason)
}

// place says how many are before the visitor.
func (w *translation) place(ahead int) string { return w.placeOf(ahead, reserver.AheadMost) }

// placeOf says how many are before one, if no more than most were counted.
func (w *translation) placeOf(ahead, most int) string {
	switch ahead {
	case 0:
		return ""
	case 1:
		return w.before
	case most:
		number := strconv.Itoa(ahead)
		return strings.Replace(fmt.Sprintf(w.befores, ahead), number, number+"+", 1)
	}
	return fmt.Sprintf(w.befores, ahead)
}

// fill writes the texts that follow from the state and the numbers of d.
// retryIn is when the next start is tried, or a service that cannot be had is
// tried again; 0 if that is now, or unknown.
func (w *translation) fill(d *PageData, retryIn time.Duration) {
	d.Language, d.Hint, d.ProgressLabel = w.language, w.hint, w.progress
	d.Status = w.status[d.State]
	d.Detail = ""
	switch d.State {
	case stateStarting:
		d.Waiting = true
		usual := time.Duration(d.Usual) * time.Millisecond
		switch {
		case retryIn > 0:
			d.Detail = fmt.Sprintf(w.tryAgain, w.duration(retryIn))
		case d.Usual == 0:
			d.Detail = w.unknown
		case d.Elapsed > d.Usual*3/2+1000:
			d.Detail = w.overdue
		default:
			d.Detail = fmt.Sprintf(w.usually, w.duration(usual))
		}
	case stateQueue:
		d.Waiting = true
		d.Detail = w.busy
	case codeAsleep:
		d.Detail = w.wakesNot
	case codeShuttingDown:
		d.Detail = w.back
	case codeSuspended:
	default:
		if retryIn > 0 {
			d.Detail = fmt.Sprintf(w.tryAgain, w.duration(retryIn))
		}
	}
}
