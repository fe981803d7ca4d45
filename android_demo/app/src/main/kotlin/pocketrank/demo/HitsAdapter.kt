package pocketrank.demo

import android.content.Context
import android.text.format.DateUtils
import android.view.LayoutInflater
import android.view.View
import android.view.ViewGroup
import android.widget.BaseAdapter
import android.widget.TextView
import pocketrank.Hit
import pocketrank.Reason

/** Rows of the list: an item, and the foremost reasons why it is there. */
class HitsAdapter(private val context: Context) : BaseAdapter() {
    var hits: List<Pair<Hit, List<Reason>>> = emptyList()
        set(value) {
            field = value
            notifyDataSetChanged()
        }

    override fun getCount() = hits.size

    override fun getItem(place: Int): Hit = hits[place].first

    override fun getItemId(place: Int) = place.toLong()

    override fun getView(place: Int, old: View?, parent: ViewGroup): View {
        val row = old ?: LayoutInflater.from(context).inflate(R.layout.hit, parent, false)
        val (hit, reasons) = hits[place]
        val why = reasons.filter { it.added > 0 && it.kind != Reason.Kind.BASE }.take(REASONS).joinToString("; ", transform = ::told)
        row.findViewById<TextView>(R.id.item).text = context.getString(R.string.hit, place + 1, "${hit.item}")
        row.findViewById<TextView>(R.id.why).text = why
        row.contentDescription = context.getString(R.string.hit_spoken, place + 1, "${hit.item}", why)
        return row
    }

    private fun told(reason: Reason): String {
        val what = when (reason.kind) {
            Reason.Kind.SEGMENT ->
                context.getString(R.string.reason_segment, day(context, reason.endS), reason.items.take(2).joinToString())
            Reason.Kind.LIVE -> context.getString(R.string.reason_live)
            Reason.Kind.MEMORY -> context.getString(R.string.reason_memory)
            Reason.Kind.BASE -> context.getString(R.string.reason_base)
            Reason.Kind.INTERACTION -> context.getString(R.string.reason_interaction)
        }
        return context.getString(R.string.reason, what, reason.added)
    }

    companion object {
        private const val REASONS = 3

        /** A day as people here write it. */
        fun day(context: Context, second: Long): String =
            DateUtils.formatDateTime(context, second * 1000, DateUtils.FORMAT_SHOW_DATE or DateUtils.FORMAT_ABBREV_MONTH)
    }
}
